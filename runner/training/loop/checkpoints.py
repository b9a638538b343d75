"""Which checkpoints can be resumed from: those that hold the marker `complete`, written last.

The marker holds the facts that a resumed run must share (`runner.resuming`). Every attempt of a job writes below its
own `attempt-<n>` folder; a later attempt sees the folders beside its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.reports import Rung
from runner.resuming import RunFacts, read_facts, refuse_mismatch, spec_facts, tell_differences, write_facts
from runner.run_directory import COMPLETE_MARKER as MARKER
from runner.run_directory import flush_folder, flush_to_disk
from runner.spec import RunSpec
from runner.training.data.mix import Mix

CHECKPOINTS = "checkpoints"
QUANTIZATION_OF: dict[Rung, tuple[str, ...]] = {
    "4bit": ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant"),
    "8bit": ("llm_int8_threshold",),
    "none": (),
}
"""The settings that decide what the base model's weights are on a rung."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    """Optimizer steps done."""

    @property
    def is_last(self) -> bool:
        """Whether all steps of the run were done when it was written."""
        return bool(self._state["global_step"] >= self._state["max_steps"])

    @property
    def log_history(self) -> list[dict[str, Any]]:
        """The trainer's records until then."""
        return list(self._state["log_history"])

    @property
    def _state(self) -> dict[str, Any]:
        return dict(json.loads((self.path / "trainer_state.json").read_text(encoding="utf-8")))

    @property
    def batch_size(self) -> int:
        """Rows at once that it was trained with."""
        return int(self._state["train_batch_size"])


def describe_run(spec: RunSpec, mix: Mix, rung: Rung, base_fingerprint: str | None) -> RunFacts:
    """All that a resumed run must share with the one that wrote the checkpoint.

    Args:
        spec: With the commit that a hub model was loaded from.
        mix: The rows as they will be trained on.
        rung: The rung that holds on this host.
        base_fingerprint: Of a local base model, None for one of the hub.
    """
    quantization = spec.project.quantization
    return RunFacts(
        spec=spec_facts(spec),
        rung=rung,
        revision=spec.project.revision,
        base_fingerprint=base_fingerprint,
        quantization={f"quantization.{name}": getattr(quantization, name) for name in QUANTIZATION_OF[rung]},
        datasets={str(id_): [spec.datasets[id_].source, digest] for id_, digest in sorted(mix.fingerprints.items())},
        tokens=_digest(mix),
    )


def mark_complete(path: Path, facts: RunFacts) -> None:
    """Declare a checkpoint complete; call it when all its other files are written.

    All of it is on the disk before the marker has its name, and the name before anybody removes an older checkpoint: so
    a power cut leaves none that only looks complete.
    """
    scratch = path / f".{MARKER}"
    write_facts(facts, scratch)
    flush_to_disk(path)
    scratch.rename(path / MARKER)
    flush_folder(path)
    flush_folder(path.parent)


def complete_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """List the complete checkpoints of this attempt and of those beside it, newest last.

    Args:
        run_dir: The attempt's folder. Only a folder named `attempt-<n>` has siblings.
    """
    attempts = run_dir.parent.glob("attempt-*") if re.fullmatch(r"attempt-\d+", run_dir.name) else [run_dir]
    found = []
    for attempt in attempts:
        for path in (attempt / CHECKPOINTS).glob("checkpoint-*"):
            marker = path / MARKER
            if marker.is_file():
                found.append((int(path.name.removeprefix("checkpoint-")), marker.stat().st_mtime, path))
    return [Checkpoint(path, step) for step, _, path in sorted(found)]


def newest_checkpoint(run_dir: Path, facts: RunFacts) -> Checkpoint | None:
    """Find where to go on from, None for a fresh start.

    Raises:
        ResumeMismatchError: The newest checkpoint of this job is of other settings, data, or another rung.
    """
    found = complete_checkpoints(run_dir)
    if not found:
        return None
    newest = found[-1]
    refuse_mismatch(newest.path, tell_differences(read_facts(newest.path / MARKER), facts))
    return newest


def remove_old_checkpoints(folder: Path, keep: int, best: Path | None = None) -> None:
    """Keep the newest complete checkpoints of this attempt and the best one.

    The marker goes first: half a folder is never complete.
    """
    steps = sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob(f"checkpoint-*/{MARKER}"))
    for step in steps[:-keep]:
        path = folder / f"checkpoint-{step}"
        if path == best:
            continue
        (path / MARKER).unlink()
        shutil.rmtree(path)


def _digest(mix: Mix) -> str:
    """Digest of the very tokens and labels, row by row."""
    digest = hashlib.sha256()
    for rows in (mix.input_ids, mix.labels):
        for row in rows:
            digest.update(len(row).to_bytes(8, "little") + array("q", row).tobytes())
    return digest.hexdigest()
