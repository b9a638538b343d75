"""Checkpoints on the disk: what the marker of a complete one promises."""

import os
from pathlib import Path

import pytest

from runner.resuming import RunFacts
from runner.run_directory import COMPLETE_MARKER
from runner.training.loop.checkpoints import mark_complete

pytestmark = pytest.mark.training

FACTS = RunFacts(
    spec={}, rung="4bit", revision=None, base_fingerprint=None, quantization={}, datasets={}, tokens="0" * 64
)


def test_a_checkpoint_is_on_the_disk_before_it_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoints" / "checkpoint-3"
    (checkpoint / "parts").mkdir(parents=True)
    for name in ("optimizer.pt", "trainer_state.json", "parts/adapter_model.safetensors"):
        (checkpoint / name).write_bytes(b"learned")
    marker, fsync = checkpoint / COMPLETE_MARKER, os.fsync
    before: set[int] = set()
    after: set[int] = set()

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        (after if marker.exists() else before).add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", flush)
    mark_complete(checkpoint, FACTS)

    # The marker, too: it is written under another name.
    held = [checkpoint, *checkpoint.rglob("*")]
    assert {path.stat().st_ino for path in held} <= before
    assert {checkpoint.stat().st_ino, checkpoint.parent.stat().st_ino} <= after
