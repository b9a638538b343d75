"""A replay of a real run, in processes of its own, as a person would start it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from runner.__main__ import main
from runner.event_lines import parse_event
from runner.events import MetricsLogged, RunSucceeded

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]


@pytest.fixture
def _host(monkeypatch: pytest.MonkeyPatch, models_root: Path, child_projects_dir: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_MODELS_ROOT", str(models_root))
    monkeypatch.setenv("QLORA_PROJECTS_DIR", str(child_projects_dir))
    monkeypatch.setenv("QLORA_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.usefixtures("_host")
def test_a_replay_gives_the_same_losses_and_the_same_weights_to_the_last_bit(
    finished_child: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(finished_child.run_dir), "--json", "--run-dir", str(tmp_path / "again")]) == 0

    out, err = capsys.readouterr()
    events = [parse_event(line) for line in out.splitlines()]
    then = [event.loss for event in finished_child.events if isinstance(event, MetricsLogged)]
    assert [event.loss for event in events if isinstance(event, MetricsLogged)] == then
    assert isinstance(events[-1], RunSucceeded)
    weights = "adapter_model.safetensors"
    adapter = Path(events[-1].adapter_path)
    assert adapter == tmp_path / "again" / "adapter"
    assert (adapter / weights).read_bytes() == (finished_child.run_dir / "adapter" / weights).read_bytes()
    assert "Data, base model, versions and git revision are the same here." in err
    assert "the original's to the last bit" in err


@pytest.mark.usefixtures("_host")
def test_a_replay_on_other_rows_is_refused_before_anything_is_loaded(
    finished_child: Any,
    child_projects_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(child_projects_dir, tmp_path / "projects")
    with (tmp_path / "projects" / "rows-1.jsonl").open("a") as rows:
        rows.write('{"prompt": "What is 1 + 1?", "completion": "3"}\n')
    monkeypatch.setenv("QLORA_PROJECTS_DIR", str(tmp_path / "projects"))

    assert main(["replay", str(finished_child.run_dir / "adapter" / "manifest.json")]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert "dataset 1 (rows-1.jsonl): " in err
    assert "--accept-differences" in err
    assert not (tmp_path / "state" / "outputs").exists()
