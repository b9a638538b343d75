"""Merges an adapter into its base model's 16-bit weights, in a child process; one rename publishes the result."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from runner.child import child_environment
from runner.errors import TrainingError, UsageError
from runner.manifest import base_differences, read_manifest
from runner.redaction import redact
from runner.reports import Record, Rung
from runner.run_directory import flush_to_disk
from runner.settings import RunnerSettings

PROBE = "probe.safetensors"


class MergeReport(Record):
    """What a merged model is, and how far its answers are from those of the model that was trained."""

    base_model: str
    """As the project names it."""
    revision: str | None
    rung: Rung
    """The rung that the adapter was trained on."""
    dtype: str
    """Of the merged weights, `bfloat16` or `float16`."""
    device: str
    """Where it was merged."""
    size_bytes: int
    """Of all files."""
    positions: int
    """Places in a few texts whose logits were compared."""
    adapter_difference: float
    """Largest absolute logit difference of the adapter on the base model: how much there is to preserve."""
    rounding_difference: float
    """Largest absolute logit difference of the merged model to the adapter on the 16-bit base model."""
    trained_difference: float | None
    """To the model as it was trained, on its rung; None where its run directory is gone."""
    same_tokens: int | None
    """Positions at which merged and trained model find the same token most likely; None as above."""
    untied: bool
    """Whether input and output embeddings, one tensor in the base model, had to become two."""


def choose_output(adapter: Path, asked: Path | None) -> Path:
    """The folder to write: the one asked for, else `merged` beside the adapter.

    Raises:
        UsageError: It is there already (`output-exists`).
    """
    output = asked.absolute() if asked is not None else adapter.parent / "merged"
    if output.exists() or output.is_symlink():
        raise UsageError(
            f"{output} is there already, and nothing is written over.",
            hint="Remove it, or name another folder with --output.",
            code="output-exists",
        )
    return output


def merge(adapter: Path, output: Path, settings: RunnerSettings) -> MergeReport:
    """Merge, have a fresh process load the result as anybody would, and publish it.

    Args:
        adapter: A published adapter's folder.
        output: The folder to write, not there yet; it appears whole or not at all.
        settings: Where base models lie.

    Raises:
        UsageError: The manifest cannot be read, or the base model here is not the one of the training.
        TrainingError: It does not fit into memory or on the disk, or the result is not what it should be.
    """
    manifest = read_manifest(adapter)
    others = base_differences(manifest, settings.models_root)
    if any(difference.grave for difference in others):
        raise UsageError(
            f"The adapter was trained on another base model than this host has: {others[0]}.",
            hint="QLORA_MODELS_ROOT says where base models lie.",
            code="replay-differs",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        report = _run_child(adapter, scratch / "model", settings)
        flush_to_disk(scratch / "model")
        # Never over something that came in the meantime: a rename would replace an empty folder.
        choose_output(adapter, output)
        (scratch / "model").rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def _run_child(adapter: Path, folder: Path, settings: RunnerSettings) -> MergeReport:
    command = [sys.executable, "-m", "runner.training.outcome.merge", str(adapter), str(folder)]
    probe = _find_probe(adapter)
    if probe is not None:
        command += ["--probe", str(probe)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(settings), check=False)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return MergeReport.model_validate_json(lines[-1])
    if done.returncode == 1 and lines:
        problem = json.loads(lines[-1])
        raise TrainingError(problem["message"], hint=problem["hint"], code=problem["code"])
    tail = redact("\n".join(done.stderr.strip().splitlines()[-15:]))
    raise TrainingError(f"The merging process died with exit status {done.returncode}.\n{tail}".rstrip(), code="merge")


def _find_probe(adapter: Path) -> Path | None:
    """What the trained model answered, stored by the attempt that made the adapter: the last one of its job."""
    found = [*adapter.parent.glob(f"attempt-*/{PROBE}"), *adapter.parent.glob(PROBE)]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
