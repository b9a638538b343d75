"""A disk that fills up under a training child."""

import io
import os
import subprocess
from pathlib import Path

import pytest

from runner.child import TRAINING_PROGRAM, Child, training_arguments
from runner.event_lines import parse_event
from runner.events import RunFailed
from runner.run_directory import open_attempt
from runner.spec import RunSpec
from runner.training.__main__ import EventWriter, run
from runner.training.stopping import StopSwitch

pytestmark = pytest.mark.timeout(180)

# In a namespace of its own anybody may mount a file system.
OWN_NAMESPACE = ("/usr/bin/unshare", "--user", "--map-root-user", "--mount")


def test_a_checkpoint_that_finds_no_space_ends_the_run_with_a_code_and_leaves_none_that_looks_complete(
    child_spec: RunSpec, child_projects_dir: Path, models_root: Path, tmp_path: Path
) -> None:
    allowed = subprocess.run([*OWN_NAMESPACE, "/bin/true"], check=False, capture_output=True, text=True)
    if allowed.returncode != 0:
        pytest.skip(f"this machine allows no namespaces: {allowed.stderr.strip()}")
    run_dir = open_attempt(tmp_path / "job", child_spec).path
    checkpoints = run_dir / "checkpoints"
    checkpoints.mkdir()
    mount = f"mount -t tmpfs -o size=256k small '{checkpoints}' && exec \"$@\""
    folders = {"QLORA_MODELS_ROOT": str(models_root), "QLORA_PROJECTS_DIR": str(child_projects_dir)}
    command = [*OWN_NAMESPACE, "/bin/sh", "-c", mount, "sh", *TRAINING_PROGRAM, *training_arguments(run_dir)]

    with Child(command, run_dir, environ=dict(os.environ) | folders) as child:
        kinds = [event.kind for event in child.events() if event is not None]
        end = child.end()

    assert isinstance(end, RunFailed), (run_dir / "train.log").read_text()
    assert end.code == "disk-full"
    assert end.hint
    assert "checkpoint_saved" not in kinds
    assert "metrics_logged" in kinds


def test_an_event_that_the_run_directory_cannot_take_ends_the_run_and_is_told_to_the_worker(
    child_spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.json").write_text(child_spec.model_dump_json(), encoding="utf-8")
    monkeypatch.setenv("QLORA_MODELS_ROOT", str(tmp_path))
    told, stop = io.StringIO(), StopSwitch()

    with Path("/dev/full").open("w", encoding="utf-8") as log:
        status = run(tmp_path, EventWriter(log, told, stop), stop)

    first, *_, last = [parse_event(line) for line in told.getvalue().splitlines()]
    assert status == 1
    assert first.kind == "phase_started"
    assert isinstance(last, RunFailed)
    assert last.code == "disk-full"
    assert last.hint


def test_a_failure_is_told_also_where_the_log_takes_no_more(tmp_path: Path) -> None:
    (tmp_path / "attempt-1").mkdir()
    with Path("/dev/full").open("w", encoding="utf-8") as log:
        child = subprocess.run(
            [*TRAINING_PROGRAM, str(tmp_path / "attempt-1")],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
            env=dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
        )

    end = parse_event(child.stdout)
    assert isinstance(end, RunFailed)
    assert "spec.json" in end.message
