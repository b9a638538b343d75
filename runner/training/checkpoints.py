"""Which checkpoints can be resumed from: those that hold the marker `complete`, written last.

Every attempt of a job writes below its own `attempt-<n>` folder; a later attempt sees the folders beside its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from runner.reports import Rung
from runner.spec import RunSpec
from runner.training.data import Mix

CHECKPOINTS = "checkpoints"
MARKER = "complete"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int
    """Optimizer steps done."""

    @property
    def is_last(self) -> bool:
        """Whether all steps of the run were done when it was written."""
        state = json.loads((self.path / "trainer_state.json").read_text(encoding="utf-8"))
        return bool(state["global_step"] >= state["max_steps"])


def fingerprint_of(spec: RunSpec, mix: Mix, rung: Rung) -> str:
    """Digest of all that a resumed run must share with the one that wrote the checkpoint."""
    project = spec.project
    facts = {
        "base_model": [project.base_model, project.revision],
        "rung": rung,
        "lora": project.lora.model_dump(mode="json"),
        "training": project.training.model_dump(mode="json"),
        "traits": [trait.model_dump(mode="json") for trait in project.traits],
        "held_out_percentage": project.evaluation.held_out_percentage,
        "data": mix.fingerprints,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def mark_complete(path: Path, fingerprint: str) -> None:
    """Declare a checkpoint complete; call it when all its other files are written."""
    scratch = path / f".{MARKER}"
    scratch.write_text(fingerprint + "\n", encoding="utf-8")
    scratch.rename(path / MARKER)


def complete_checkpoints(run_dir: Path, fingerprint: str | None = None) -> list[Checkpoint]:
    """List the complete checkpoints of this attempt and of those beside it, newest last.

    Args:
        run_dir: The attempt's folder. Only a folder named `attempt-<n>` has siblings.
        fingerprint: Leave out checkpoints of other data, settings or another rung, which would not be continued but
            mixed up.
    """
    attempts = run_dir.parent.glob("attempt-*") if re.fullmatch(r"attempt-\d+", run_dir.name) else [run_dir]
    found = []
    for attempt in attempts:
        for path in (attempt / CHECKPOINTS).glob("checkpoint-*"):
            marker = path / MARKER
            if not marker.is_file():
                continue
            if fingerprint is None or marker.read_text(encoding="utf-8").strip() == fingerprint:
                found.append((int(path.name.removeprefix("checkpoint-")), marker.stat().st_mtime, path))
    return [Checkpoint(path, step) for step, _, path in sorted(found)]


def newest_checkpoint(run_dir: Path, fingerprint: str) -> Checkpoint | None:
    """Find where to go on from, None for a fresh start."""
    found = complete_checkpoints(run_dir, fingerprint)
    return found[-1] if found else None


def remove_old_checkpoints(folder: Path, keep: int) -> None:
    """Keep the newest complete checkpoints of this attempt. The marker goes first: half a folder is never complete."""
    steps = sorted(int(path.parent.name.removeprefix("checkpoint-")) for path in folder.glob(f"checkpoint-*/{MARKER}"))
    for step in steps[:-keep]:
        path = folder / f"checkpoint-{step}"
        (path / MARKER).unlink()
        shutil.rmtree(path)
