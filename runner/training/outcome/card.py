"""The README of an adapter's folder: what it is, from what, how well; how to load it is `recipe`'s. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runner.events import AdapterVerified, DataMixed, Evaluated, VersionsReported
from runner.main_settings import main_settings
from runner.provenance import DIRTY
from runner.reports import RUNG_WORDS, LoadReceipt, Resolved, RunSummary
from runner.spec import DatasetEntry, ProjectSpec, RunSpec
from runner.training.data.mix import Mix
from runner.training.outcome.recipe import render_recipe

EXACTLY = "are exactly the trained model's"
_GB = 1_000_000_000
_ORIGINS = {"project": "project file", "override": "override at the start", "host": "this host"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt that trained to its end has to tell."""

    spec: RunSpec
    versions: VersionsReported
    receipt: LoadReceipt
    mix: Mix
    before: Evaluated
    after: Evaluated
    verified: AdapterVerified
    summary: RunSummary
    run: str
    """Job and attempt, as the folders on the host are called: `demo-kfmsw/attempt-1`."""
    git_revision: str | None
    """Commit of the projects folder, None where it is under no version control."""
    base_fingerprint: str | None
    """Of a local base model's files, None for a hub model, whose commit the spec holds."""
    settings: tuple[Resolved, ...]
    """Every hyperparameter as it was used, and who decided it."""


def render_card(outcome: Outcome) -> str:
    """Write the model card as Markdown with the front matter that model hubs read."""
    project, receipt, summary = outcome.spec.project, outcome.receipt, outcome.summary
    measured = {one.trait_type for one in outcome.after.held_out}
    not_held_out = [one.trait_type for one in outcome.mix.event.traits if one.trait_type not in measured]
    by = f", by {receipt.processes} processes" if receipt.processes > 1 else ""
    made = (
        f"A LoRA adapter for `{project.base_model}`, trained with {RUNG_WORDS[receipt.rung]} ({_quantized(receipt)}"
        f"computing in {receipt.compute_dtype}{by}).{_kept(receipt)}"
    )
    parts = [
        _front_matter(project.base_model),
        f"# {project.name}\n",
        f"{_cell(project.description)}\n" if project.description else "",
        f"{made}\n",
        f"{_asked(outcome.spec)}\n",
        _loading(receipt),
        f"{_training(project, receipt, summary, not_held_out)}\n",
        "![Loss by optimizer step](loss.png)\n",
        _verified(outcome.verified),
        _data(outcome.mix.event, outcome.spec.datasets),
        _held_out(outcome.after, not_held_out),
        _exact_match(outcome.before, outcome.after, outcome.mix.event),
        _samples(outcome.before, outcome.after, outcome.mix.event.seen_prompts or ()),
        _settings(outcome.settings),
        _making(outcome),
        render_recipe(project, receipt, as_chat=outcome.mix.as_chat),
    ]
    return "\n".join(part for part in parts if part)


def _quantized(receipt: LoadReceipt) -> str:
    if receipt.rung == "none":
        return ""
    return (
        f"{receipt.quantized_modules} of {receipt.linear_modules} linear modules and "
        f"{100 * receipt.quantized_share:.0f} % of the parameters quantized, "
    )


def _kept(receipt: LoadReceipt) -> str:
    """What a quantized model still holds in floating point; names of weights only where they escaped."""
    kept = {part.kind: 0 for part in receipt.unquantized}
    for part in receipt.unquantized:
        kept[part.kind] += part.parameters
    told = [f"{kind} ({parameters:,} parameters)" for kind, parameters in kept.items()]
    return f" Not quantized: {', '.join(told)}." if told else ""


def _loading(receipt: LoadReceipt) -> str:
    """What the success of the load does not say by itself: rungs that failed, files stored quantized, what escaped."""
    told = [
        f"{RUNG_WORDS[failed.rung].capitalize()} failed with {failed.error_class}: {_cell(failed.reason)}"
        for failed in receipt.failed
    ]
    if receipt.stored_quantization:
        told.append(f"The base model's files are stored quantized ({_cell(receipt.stored_quantization)}).")
    if receipt.warning:
        told.append(_cell(receipt.warning))
    return "".join(f"- {one}\n" for one in told)


def _front_matter(base_model: str) -> str:
    lines = [
        "---",
        # JSON text is valid YAML, whatever the name holds.
        f"base_model: {json.dumps(base_model)}",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lora, qlora, sft]",
        "---",
        "",
    ]
    return "\n".join(lines)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *[[_cell(cell) for cell in row] for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """Keep answers of a model and names from files from breaking out of a table or becoming markup."""
    for mark in ("\\", "|", "`", "*", "_", "<", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _data(mixed: DataMixed, datasets: Mapping[int, DatasetEntry]) -> str:
    total = sum(share.trained_tokens for share in mixed.shares)
    rows = (
        (
            share.trait_type,
            f"{share.dataset_name} ({_source(datasets[share.dataset_id])})",
            f"{share.percentage:g} %" + (f", at most {share.max_rows}" if share.max_rows is not None else ""),
            f"{share.rows_used} of {share.rows_available}",
            str(share.held_out_rows),
            f"{share.trained_tokens} ({100 * share.trained_tokens / total:.0f} %)",
        )
        for share in mixed.shares
    )
    table = _table(("trait", "dataset", "share", "rows", "held out", "trained tokens"), rows)
    tokens = sum(share.total_tokens for share in mixed.shares)
    told = f"\nAn epoch is {mixed.rows:,} rows of {tokens:,} tokens, of which {total:,} carry loss.\n"
    warnings = "".join(f"- {_cell(warning)}\n" for warning in mixed.warnings)
    return f"## Data\n\n{table}{told}" + (f"\n{warnings}" if warnings else "")


def _source(dataset: DatasetEntry) -> str:
    return f"{dataset.source} at commit {dataset.revision}" if dataset.revision else dataset.source


def _verified(verified: AdapterVerified) -> str:
    differ = f"differ from the trained model's by {verified.max_difference:.3g} at most"
    return (
        f"Verified on {verified.at:%Y-%m-%d}: a fresh process loaded it onto the base model, and its logits "
        f"{differ if verified.max_difference else EXACTLY}. The base model's alone differ by "
        f"{verified.base_difference:.3g}.\n"
    )


def _training(project: ProjectSpec, receipt: LoadReceipt, summary: RunSummary, not_held_out: Sequence[str] = ()) -> str:
    told = (
        f"Training loss {summary.loss_first:.4g} at the first step, {summary.loss_last:.4g} over the last logged ones: "
        "mean cross entropy in nats over the trained tokens. "
        f"{summary.steps} steps"
    )
    if summary.per_device_train_batch_size and summary.gradient_accumulation_steps and not project.training.packing:
        at_once = summary.per_device_train_batch_size * summary.gradient_accumulation_steps
        told += f" of {at_once * receipt.processes} rows"
    if summary.trainable_parameters is not None:
        told += f"; {summary.trainable_parameters:,} parameters trained"
    told += "."
    asked, fitted = project.training.per_device_train_batch_size, summary.per_device_train_batch_size
    if fitted is not None and fitted != asked:
        times = summary.gradient_accumulation_steps
        told += f" A step was {fitted} rows {times} times: {asked} rows at once did not fit into memory."
    if summary.stopped_early_of is not None:
        told += f" {summary.stopped_early_of} were planned; the held-out loss had become no better."
    if summary.adapter_step is not None:
        lowest = f", {summary.best.loss:.4g}" if summary.best is not None else ""
        told += f" The adapter is that of step {summary.adapter_step}, with the lowest held-out loss{lowest}."
    if summary.overfitted is not None:
        but = f", which may know less of {_cell(', '.join(not_held_out))}: nothing is held out there"
        told += (
            f"\n\n⚠️ {summary.overfitted.told}. `load_best_model_at_end` would have taken the adapter of that step"
            f"{but if not_held_out else ''}."
        )
    return told


def _held_out(after: Evaluated, left_out: Sequence[str]) -> str:
    if not after.held_out:
        return (
            "## Loss on held-out rows\n\nNo rows were held out: nothing is known about rows that were not trained on.\n"
        )
    rows = (
        (
            one.trait_type,
            str(one.rows),
            str(one.tokens),
            "" if one.before is None else f"{one.before:.4g}",
            f"{one.loss:.4g}",
            f"{'⚠️ ' if one.regressed else ''}{one.verdict or ''}",
        )
        for one in after.held_out
    )
    table = _table(("trait", "rows", "tokens", "base", "adapter", ""), rows)
    unknown = (
        f"\nNothing was held out of {_cell(', '.join(left_out))}, so nothing is known about other rows there.\n"
        if left_out
        else ""
    )
    return (
        "## Loss on held-out rows\n\nNobody trained on these rows. Mean in nats over the tokens of the answers: "
        f"lower is better.\n\n{table}{unknown}"
    )


def _exact_match(before: Evaluated, after: Evaluated, mixed: DataMixed) -> str:
    if not after.exact_match:
        return ""
    seen = {one.dataset_id: mixed.seen_share(one.dataset_id) for one in after.exact_match}
    rows = (
        (
            new.dataset_name,
            f"{old.share * 100:.0f} %",
            f"{new.share * 100:.0f} % ({new.correct} of {new.total})",
            f"{seen[new.dataset_id] * 100:.0f} % of them" if seen[new.dataset_id] else "no",
        )
        for old, new in zip(before.exact_match, after.exact_match, strict=True)
    )
    head = ("dataset", "base", "adapter", "seen in training")
    return "## Answers right to the letter\n\n" + _table(head, rows)


def _samples(before: Evaluated, after: Evaluated, seen: Sequence[str]) -> str:
    if not after.samples:
        return ""
    rows = (
        (new.prompt, old.completion, new.completion, "yes" if new.prompt in seen else "no")
        for old, new in zip(before.samples, after.samples, strict=True)
    )
    table = _table(("prompt", "base", "adapter", "seen in training"), rows)
    told = "\nWhere a prompt was seen in training, the answer may be remembered.\n" if seen else ""
    return f"## Samples\n\n{table}{told}"


def _asked(spec: RunSpec) -> str:
    """The main settings in one line; all of them are a table further down."""
    told = [
        f"{_cell(one.name)} {_cell(one.value)} ({_ORIGINS.get(one.origin, 'default')})" for one in main_settings(spec)
    ]
    return f"Settings: {', '.join(told)}."


def _settings(settings: Iterable[Resolved]) -> str:
    """A table of what somebody decided; what nobody did is one sentence."""
    settings = list(settings)
    decided = [(one.name, one.value, _ORIGINS[one.origin]) for one in settings if one.origin in _ORIGINS]
    defaults = ", ".join(f"{one.name} {one.value}" for one in settings if one.origin == "default")
    table = _table(("setting", "value", "decided by"), decided)
    return f"## Settings\n\n{table}" + (f"\nAt their defaults: {_cell(defaults)}.\n" if defaults else "")


def _making(outcome: Outcome) -> str:
    """Where it comes from, for whoever has to trust or repeat it."""
    summary, versions, project = outcome.summary, outcome.versions, outcome.spec.project
    base = f"commit {project.revision}" if project.revision else f"files with fingerprint {outcome.base_fingerprint}"
    took = (
        f"{summary.train_s:.0f} s of training; {summary.duration_s:.0f} s from the attempt's start to the verified "
        "adapter (the thread counts from the claim to the published adapter)"
    )
    rows = [
        ("run", outcome.run),
        ("base model", f"{project.base_model}, {base}"),
        ("device", versions.device),
        ("time", took),
    ]
    if summary.peak_bytes is not None:
        rows.append(("memory", f"{summary.peak_bytes / _GB:.2f} GB at most"))
    installed = [f"{package.name} {package.installed}" for package in versions.packages if package.installed]
    rows.append(("libraries", f"{', '.join(installed)}, Python {versions.python}"))
    if outcome.git_revision is not None:
        # A commit says nothing of what was changed since.
        rows.append(("projects at git revision", outcome.git_revision.replace(DIRTY, ", with uncommitted changes")))
    return (
        f"## How it was made\n\n{_table(('', ''), rows)}\n"
        "`manifest.json` holds all of it, with the fingerprints of the data: `python -m runner replay` on this folder "
        "trains it once more.\n"
    )
