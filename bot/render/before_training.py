"""What a run starts from, as replies of a job's thread: versions, base model, the ladder's rungs, data. Pure."""

from __future__ import annotations

from bot.render.message import Message, compose, compose_with_table
from bot.render.text import (
    ERROR_LIMIT,
    code,
    count,
    duration,
    escape,
    figure,
    keep_end,
    megabytes,
    number,
    percent,
)
from bot.story import Story
from runner.events import ConfigLoaded, DataMixed, ModelLoaded, RungFailed, VersionsReported
from runner.reports import RUNG_WORDS, DefectReport, LoadReceipt, PackageVersion, ShareReport


def same_versions(event: VersionsReported, told: VersionsReported | None) -> bool:
    """Whether the thread tells these versions already."""
    if told is None:
        return False
    return (event.packages, event.python, event.device) == (told.packages, told.python, told.device)


def render_versions(event: VersionsReported) -> Message:
    """The library stack of a host against the tested one, and known defects of what is installed."""
    differing = sum(package.difference != "same" for package in event.packages)
    told = "all as tested" if not differing else f"{differing} of {len(event.packages)} differ from what is tested"
    rows = [("Library", "Installed", "Verdict"), *(_version_row(package) for package in event.packages)]
    below = [f"Python {escape(event.python)} · {escape(event.device)}", *map(_defect, event.defects)]
    return compose_with_table([f"*Versions* · stack {code(event.stack)} · {told}"], rows, below)


def _defect(defect: DefectReport) -> str:
    mark = {"informative": "Good to know:", "worked-around": "⚠️ Worked around:", "cannot-work": "⛔ Cannot work:"}[
        defect.severity
    ]
    told = f"{defect.affected}. {defect.cause} {defect.remedy}"
    return f"{mark} {escape(told)} <{defect.url}|Upstream>"


def _version_row(package: PackageVersion) -> tuple[str, str, str]:
    verdict = {
        "same": "as tested",
        "patch": f"patch differs from {package.tested}",
        "minor": f"minor differs from {package.tested}",
        "major": f"major differs from {package.tested}",
        "missing": f"missing; tested {package.tested}",
        "untested": "not in this stack",
    }[package.difference]
    return (package.name, package.installed or "—", verdict)


def render_config(event: ConfigLoaded, story: Story) -> Message:
    """Where the base model, its tokenizer and its configuration come from."""
    source = "config.json" if event.source == "config.json" else "the project"
    architecture = f" · {code(event.architecture)}" if event.architecture else ""
    revision = f"commit {code(event.revision)}" if event.revision else "a folder on the host"
    kind = f"model_type {code(event.model_type)} from {source}"
    lines = [
        f"*Base model* {code(story.record.spec.project.base_model)} · {revision}",
        f"*Config* {code(event.config_class)} · {kind}{architecture}",
    ]
    tokenizer = story.tokenizer
    if tokenizer is not None:
        pad = {
            "existing": "its own",
            "reserved": "a reserved one",
            "unk": "the unknown token",
            "eos": "the end token, safe here because masking goes by position",
        }[tokenizer.pad_choice]
        entries = f"{number(tokenizer.vocab_size)} entries"
        lines.insert(
            1, f"*Tokenizer* {code(tokenizer.tokenizer_class)} · {entries} · pad {code(tokenizer.pad_token)}, {pad}"
        )
        if tokenizer.workaround:
            lines.append(f"⚠️ Worked around: {escape(tokenizer.workaround)}")
    return compose(lines)


def render_rung_failed(event: RungFailed) -> Message:
    """Why a rung of the ladder does not hold, and what comes next."""
    failed = event.failed
    known = f" ({code(failed.failure_class)}): {escape(failed.meaning)}" if failed.failure_class != "unknown" else ""
    return compose([escape(keep_end(event.announcement, ERROR_LIMIT)), f"{code(failed.error_class)}{known}"])


def render_model(event: ModelLoaded) -> Message:
    """What has loaded: how much of it is quantized, the probe, memory, and what failed before."""
    receipt = event.receipt
    held = f"{megabytes(receipt.model_bytes)} of weights · {escape(receipt.compute_dtype)} on {escape(receipt.device)}"
    if receipt.processes > 1:
        held += f" · in each of {receipt.processes} processes"
    told = [
        f"Probe: loss {figure(receipt.probe_loss)}, gradient norm {figure(receipt.probe_grad_norm)}",
        f"loaded in {duration(receipt.load_s)}",
    ]
    if receipt.load_peak_bytes is not None and receipt.steady_bytes is not None:
        peak, steady = megabytes(receipt.load_peak_bytes), megabytes(receipt.steady_bytes)
        told.append(f"loading took {peak} of memory at its peak, {steady} of it are kept")
    lines = [escape(event.announcement), f"{_quantized(receipt)} · {held}", " · ".join(told)]
    if receipt.failed:
        failed = ", ".join(f"{RUNG_WORDS[one.rung]} ({code(one.error_class)})" for one in receipt.failed)
        lines.append(f"Asked for {RUNG_WORDS[receipt.rung_asked]}; failed: {failed}")
    if receipt.stored_quantization:
        lines.append(f"The base model's files are stored quantized: {code(receipt.stored_quantization)}")
    if receipt.warning:
        lines.append(f"⚠️ {escape(keep_end(receipt.warning, 1_000))}")
    if receipt.guard_interceptions:
        lines.append(f"The config guard turned away {count(receipt.guard_interceptions, 'dict assignment')}")
    return compose(lines)


def _quantized(receipt: LoadReceipt) -> str:
    if receipt.rung == "none":
        return f"{count(receipt.linear_modules, 'linear module')}, none quantized"
    bits = {"4bit": "4-bit", "8bit": "8-bit"}[receipt.rung]
    share = f"{percent(receipt.quantized_share)} of the parameters"
    return f"{receipt.quantized_modules} of {count(receipt.linear_modules, 'linear module')} are really {bits}, {share}"


def render_data(event: DataMixed) -> Message:
    """Rows and trained tokens of every trait's datasets."""
    tokens = sum(share.trained_tokens for share in event.shares)
    total = sum(share.total_tokens for share in event.shares)
    rows: list[tuple[str, ...]] = [("Trait", "Dataset", "Rows used", "Trained tokens")]
    for trait in event.traits:
        shares = [share for share in event.shares if share.trait_type == trait.trait_type]
        rows += [_share(share, tokens) for share in shares]
        if len(shares) > 1:
            told = f"{number(trait.trained_tokens)} · {percent(trait.token_share)}"
            rows.append((trait.trait_type, "together", f"{number(trait.rows)}{_held_out(trait.held_out_rows)}", told))
    below = [f"{count(event.rows, 'row')} · longest {count(event.longest_tokens, 'token')}"]
    if total:
        below[0] += f" · {percent(tokens / total)} of {count(total, 'token')} carry loss"
    below += [f"⚠️ {escape(warning)}" for warning in event.warnings]
    return compose_with_table(["*Data*"], rows, below)


def _held_out(rows: int) -> str:
    return f" · {number(rows)} held out" if rows else ""


def _share(share: ShareReport, tokens: int) -> tuple[str, ...]:
    most = f", at most {number(share.max_rows)}" if share.max_rows is not None else ""
    return (
        share.trait_type,
        f"{share.dataset_name} ({share.dataset_id})",
        f"{number(share.rows_used)} of {number(share.rows_available)}{most}{_held_out(share.held_out_rows)}",
        f"{number(share.trained_tokens)} · {percent(share.trained_tokens / tokens if tokens else 0.0)}",
    )
