"""The real standby child: it has imported all that a run needs, and trains to the end."""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from runner.child import child_environment
from runner.events import RunFailed, RunSucceeded
from runner.run_directory import open_attempt
from runner.settings import RunnerSettings, load_settings
from runner.spec import RunSpec
from runner.standby import Standby

pytestmark = pytest.mark.timeout(300)

Eventually = Callable[..., None]


@pytest.fixture
def settings(models_root: Path, child_projects_dir: Path, tmp_path: Path) -> RunnerSettings:
    return dataclasses.replace(
        load_settings({}), models_root=models_root, projects_dir=child_projects_dir, state_dir=tmp_path
    )


def test_a_standby_trains_to_the_end(
    settings: RunnerSettings, child_spec: RunSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "runner.standby")
    run_dir = open_attempt(tmp_path / "job", child_spec).path
    with Standby(settings) as standby, standby(run_dir) as child:
        kinds = [event.kind for event in child.events() if event is not None]
        end = child.end()

    assert isinstance(end, RunSucceeded), (run_dir / "train.log").read_text()
    assert kinds[0] == "phase_started"
    assert "adapter_verified" in kinds
    # Neither a child that was started in its place.
    assert "cannot be used" not in caplog.text
    assert "died" not in caplog.text


def test_a_job_for_several_devices_is_launched_by_a_fresh_process(
    settings: RunnerSettings,
    child_spec: RunSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "runner.standby")
    compute = child_spec.project.compute.model_copy(update={"gpus": 2})
    project = child_spec.project.model_copy(update={"compute": compute, "base_model": "nowhere"})
    run_dir = open_attempt(tmp_path / "job", child_spec.model_copy(update={"project": project})).path
    # The ranks would take seconds to import what they then hardly use.
    (tmp_path / "sitecustomize.py").write_text("import sys\nif '--rank' in sys.argv: sys.exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert child_environment(settings)["PYTHONPATH"] == str(tmp_path)

    with Standby(settings) as standby, standby(run_dir) as child:
        commands = []
        for _ in child.events():
            with suppress(FileNotFoundError):
                commands.append(Path(f"/proc/{child.pid}/cmdline").read_text(encoding="utf-8"))
        end = child.end()

    assert any(str(run_dir) in command and "--standby" not in command for command in commands)
    assert "cannot be used" not in caplog.text
    assert isinstance(end, RunFailed)
    assert "rank" in end.message
