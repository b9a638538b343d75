"""Writes what a run leaves: adapter and tokenizer, a card for people, a manifest for machines, the loss curve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.manifest import MANIFEST
from runner.provenance import fingerprint_file
from runner.training.outcome.card import Outcome, render_card
from runner.training.outcome.saved_weights import WEIGHTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

ADAPTER = "adapter"
LOSS_PLOT = "loss.png"
TRAINING_CURVE, HELD_OUT_CURVE = "training", "held-out rows"
TOKENIZER_CONFIG = "tokenizer_config.json"


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, base_model: str, revision: str | None
) -> int:
    """Write the adapter and its tokenizer, replacing what an interrupted save left there.

    Args:
        model: The trained model, its precision settled.
        tokenizer: With the chat template that the rows were rendered with.
        folder: `RUN_DIR/adapter`.
        base_model: As the project names it.
        revision: Commit of the hub snapshot, None for a local folder.

    Returns:
        Bytes of all files.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder))
    _name_base_model(folder / "adapter_config.json", base_model, revision)
    tokenizer.save_pretrained(folder)
    load_everywhere(folder / TOKENIZER_CONFIG)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _name_base_model(path: Path, base_model: str, revision: str | None) -> None:
    """Name the base model as the project does, where PEFT wrote the folder that this host has it in.

    Afterwards and in the file, because PEFT compares vocabularies with that folder while it saves.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base_model, "revision": revision}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_everywhere(path: Path) -> None:
    """Write a saved tokenizer's settings in the words of transformers 4, which transformers 5 reads as well.

    As transformers 5 writes them, 4.57 fails: it has no class `TokenizersBackend`, whose name there is
    `PreTrainedTokenizerFast`, it calls further special tokens `additional_special_tokens` where they are a list and
    `extra_special_tokens` where they have names, and would keep `local_files_only`, which was true of this host.

    Args:
        path: The `tokenizer_config.json`.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if "model_specific_special_tokens" in config:
        config["extra_special_tokens"] = config.pop("model_specific_special_tokens")
    for of_this_host in ("is_local", "local_files_only"):
        config.pop(of_this_host, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_documents(outcome: Outcome, folder: Path) -> None:
    """Put card and manifest beside a verified adapter.

    Args:
        outcome: What they tell.
        folder: `RUN_DIR/adapter`.
    """
    (folder / MANIFEST).write_text(json.dumps(_manifest(outcome, folder), indent=2) + "\n", encoding="utf-8")
    # In place of the card that PEFT wrote, which never records the quantization.
    (folder / "README.md").write_text(render_card(outcome), encoding="utf-8")


def _manifest(outcome: Outcome, folder: Path) -> dict[str, Any]:
    spec = outcome.spec
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "run": outcome.run,
        "base_model": spec.project.base_model,
        "revision": spec.project.revision,
        "base_fingerprint": outcome.base_fingerprint,
        "rung": outcome.receipt.rung,
        "git_revision": outcome.git_revision,
        "spec": spec.model_dump(mode="json"),
        "versions": {package.name: package.installed for package in outcome.versions.packages}
        | {"python": outcome.versions.python},
        "device": outcome.versions.device,
        "settings": [setting.model_dump(mode="json") for setting in outcome.settings],
        "receipt": outcome.receipt.model_dump(mode="json"),
        "data": [
            share.model_dump(mode="json") | {"sha256": outcome.mix.fingerprints[share.dataset_id]}
            for share in outcome.mix.event.shares
        ],
        "traits": [trait.model_dump(mode="json") for trait in outcome.mix.event.traits],
        "data_warnings": list(outcome.mix.event.warnings),
        "seen_prompts": list(outcome.mix.event.seen_prompts or ()),
        "metrics": {
            "summary": outcome.summary.model_dump(mode="json"),
            "before": outcome.before.model_dump(mode="json", exclude={"at", "kind", "when"}),
            "after": outcome.after.model_dump(mode="json", exclude={"at", "kind", "when"}),
        },
        "weights_sha256": fingerprint_file(folder / WEIGHTS),
        "verified": outcome.verified.model_dump(mode="json", exclude={"kind"}),
    }


def loss_curves(
    log_history: Sequence[dict[str, Any]], base_loss: float | None = None
) -> dict[str, list[tuple[int, float]]]:
    """Sort the trainer's records into curves of (optimizer step, nats a token), both named and one perhaps empty. Pure.

    Args:
        log_history: Of all attempts; records without a loss are passed over.
        base_loss: On the held-out rows before training: where their curve begins, at step 0.
    """
    curves = {
        label: [(int(record["step"]), float(record[key])) for record in log_history if key in record]
        for label, key in ((TRAINING_CURVE, "loss"), (HELD_OUT_CURVE, "eval_loss"))
    }
    if base_loss is not None and curves[HELD_OUT_CURVE]:
        # Without it, a run that is best at its first evaluation looks as if it had only made the model worse.
        curves[HELD_OUT_CURVE].insert(0, (0, base_loss))
    return curves


def plot_loss(
    log_history: Sequence[dict[str, Any]],
    path: Path,
    title: str = "",
    *,
    base_loss: float | None = None,
    adapter_step: int | None = None,
) -> None:
    """Draw the loss over the optimizer steps of all attempts into a PNG file.

    Args:
        log_history: As `loss_figure` takes it.
        path: The file to write.
        title: As `loss_figure` takes it.
        base_loss: As `loss_curves` takes it.
        adapter_step: As `loss_figure` takes it.
    """
    # Imported here: matplotlib takes most of a second, and this runs beside the verifying process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415

    figure = loss_figure(log_history, title, base_loss=base_loss, adapter_step=adapter_step)
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]  # matplotlib leaves it bare


def loss_figure(
    log_history: Sequence[dict[str, Any]],
    title: str = "",
    *,
    base_loss: float | None = None,
    adapter_step: int | None = None,
) -> Figure:
    """The loss over the optimizer steps of all attempts.

    Args:
        log_history: The trainer's records. Held-out losses are a second curve.
        title: Whose curve it is.
        base_loss: As `loss_curves` takes it.
        adapter_step: The step whose adapter was taken, where that is not the last one.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # as in `plot_loss`

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for label, points in loss_curves(log_history, base_loss).items():
        if points:
            told = f"{label}: {points[-1][1]:.3g} at the end"
            best_step, best = min(points, key=lambda point: point[1])
            # The training loss goes up and down by the batch; a held-out loss that has been lower is a finding.
            if label == HELD_OUT_CURVE and best_step != points[-1][0]:
                told += f", lowest {best:.3g} at step {best_step}"
            axes.plot([step for step, _ in points], [loss for _, loss in points], marker=".", label=told)
    if adapter_step is not None:
        axes.axvline(adapter_step, color="black", linestyle=":", label=f"the adapter: step {adapter_step}")
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)", ylim=(0, None))
    # A name is no formula, whatever it holds.
    axes.set_title(title, parse_math=False)
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    return figure
