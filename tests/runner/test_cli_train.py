from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.child import Spawn
from runner.cli import train
from runner.event_lines import parse_event
from runner.resuming import RunFacts, spec_facts, write_facts
from runner.spec import RunSpec

Scripted = Callable[[str], Spawn]
PROJECTS = Path(__file__).parents[2] / "projects"


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("QLORA_PROJECTS_DIR", str(PROJECTS))


def train_arguments(project: str, **more: object) -> argparse.Namespace:
    return argparse.Namespace(**({"project": project, "overrides": [], "run_dir": None, "json": False} | more))


# --- train, with scripted children ----------------------------------------------------------------------------------


def test_training_tells_its_story_and_names_the_adapter_last(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.run(train_arguments("demo"), scripted("metrics(4, total=4)\nsucceed()")) == 0

    lines = capsys.readouterr().out.splitlines()
    adapter = Path(lines[-1].removeprefix("Adapter: "))
    assert (adapter / "adapter_model.safetensors").read_text() == "weights"
    assert adapter.parent.parent == tmp_path / "state" / "outputs" / "demo"
    assert any("step 4/4" in line for line in lines)


def test_a_training_begins_with_its_main_settings(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(train_arguments("demo", overrides=["r=8", "seed=3"]), scripted("succeed()"))

    settings, *_ = capsys.readouterr().out.splitlines()
    assert settings == (
        "Settings: learning_rate 0.002, num_train_epochs 20, effective batch 20 rows, r 8 (override), lora_alpha 32, "
        "asked for 4-bit quantization, seed 3 (override)"
    )


def test_json_prints_events_and_nothing_else(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    body = "print('noise of a library')\nOUT.write('garbage\\n')\nmetrics(1)\nsucceed()"

    assert train.run(train_arguments("demo", json=True), scripted(body)) == 0

    events = [parse_event(line) for line in capsys.readouterr().out.splitlines()]
    assert [event.kind for event in events] == ["metrics_logged", "run_succeeded"]
    assert events[1].kind == "run_succeeded"
    assert (Path(events[1].adapter_path) / "adapter_model.safetensors").exists()


def test_libraries_that_cannot_work_together_are_refused_before_anything_is_made(
    pretend_installed: Callable[[Path, str, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend_installed(tmp_path, "peft", "0.17.1")
    monkeypatch.syspath_prepend(tmp_path)

    assert main(["train", "demo"]) == 1

    err = capsys.readouterr().err
    assert "peft 0.17.1 cannot work together" in err
    assert "-m pip install peft==" in err
    assert not (tmp_path / "state" / "outputs").exists()


def test_a_failed_training_exits_1_with_message_and_hint(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "emit('run_failed', code='model-not-found', message='No such model.', hint='Put it there.')\nsys.exit(1)"

    assert train.run(train_arguments("demo"), scripted(body)) == 1

    out = capsys.readouterr().out
    assert "No such model." in out
    assert "Put it there." in out


def test_a_child_that_dies_is_an_event_too(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.run(train_arguments("demo", json=True), scripted("os.kill(os.getpid(), 11)")) == 1

    event = parse_event(capsys.readouterr().out)
    assert event.kind == "run_failed"
    assert event.code == "child-died"


def test_what_a_model_says_cannot_paint_the_terminal(scripted: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    body = "emit('run_failed', code='x', message='\\x1b[2Jgone [bold]kept[/bold]')\nsys.exit(1)"

    train.run(train_arguments("demo"), scripted(body))

    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]kept[/bold]" in out


def _tell_how_it_was_trained(job_dir: Path) -> None:
    """Write the marker of a scripted child's checkpoint as a real one would."""
    [marker] = job_dir.glob("attempt-1/checkpoints/checkpoint-3/complete")
    facts = spec_facts(RunSpec.model_validate_json((job_dir / "attempt-1" / "spec.json").read_bytes()))
    write_facts(
        RunFacts(
            spec=facts, rung="4bit", revision=None, base_fingerprint=None, quantization={}, datasets={}, tokens=""
        ),
        marker,
    )


def test_a_run_dir_is_used_again(scripted: Scripted, tmp_path: Path) -> None:
    asked = train_arguments("demo", run_dir=tmp_path / "mine")

    train.run(asked, scripted("checkpoint(3)\nos._exit(9)"))
    _tell_how_it_was_trained(tmp_path / "mine")
    train.run(asked, scripted("succeed()"))

    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["adapter", "attempt-1", "attempt-2"]


def test_a_finished_run_is_not_trained_over(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(train_arguments("demo", run_dir=tmp_path / "mine"), scripted("succeed()"))

    status = main(["train", "demo", "--run-dir", str(tmp_path / "mine")])

    assert status == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").glob("attempt-*")] == ["attempt-1"]


def test_checkpoints_of_other_settings_are_not_trained_over(
    scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(train_arguments("demo", run_dir=tmp_path / "mine"), scripted("checkpoint(3)\nos._exit(9)"))
    _tell_how_it_was_trained(tmp_path / "mine")

    status = main(["train", "demo", "lora.r=4", "save_steps=7", "--run-dir", str(tmp_path / "mine")])

    assert status == 2
    assert "checkpoint-3 was trained otherwise: lora.r: 16 → 4.\nPut it back" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").glob("attempt-*")] == ["attempt-1"]


@pytest.fixture
def start_training(child_script: Callable[[str], Path]) -> Callable[[str, str], subprocess.Popen[str]]:
    """Start `train demo` in a process of its own, which can be sent signals, with a scripted child."""

    def start(body: str, arguments: str) -> subprocess.Popen[str]:
        code = (
            "import os, sys\n"
            "from argparse import Namespace\n"
            "from pathlib import Path\n"
            "from runner.child import Child\n"
            "from runner.cli.train import run\n"
            f"command = [sys.executable, {str(child_script(body))!r}]\n"
            "def spawn(run_dir):\n"
            "    return Child([*command, str(run_dir), '--events-fd', '4'], run_dir, environ=dict(os.environ))\n"
            f"sys.exit(run(Namespace(project='demo', overrides=['lora.r=8'], {arguments}), spawn))\n"
        )
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    return start


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(
    start_training: Callable[[str, str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    command = start_training("train()", f"json=False, run_dir=Path({str(tmp_path / 'mine')!r})")
    assert command.stdout is not None
    with command.stdout as out:
        assert "Settings:" in out.readline()
        assert "step 1/100" in out.readline()
        command.send_signal(signal.SIGINT)
        rest = out.read()

    assert command.wait(20) == 130
    assert (
        rest.splitlines()[-1]
        == f"Go on with: {sys.executable} -m runner train demo lora.r=8 --run-dir {tmp_path / 'mine'}"
    )
    assert list((tmp_path / "mine").glob("attempt-1/checkpoints/checkpoint-*/complete")) != []


def test_the_second_ctrl_c_ends_a_child_that_does_not_listen(
    start_training: Callable[[str, str], subprocess.Popen[str]],
) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmetrics(1)\ntime.sleep(100)"
    command = start_training(body, "json=True, run_dir=None")
    assert command.stdout is not None
    with command.stdout as out:
        assert "metrics_logged" in out.readline()
        command.send_signal(signal.SIGINT)
        command.send_signal(signal.SIGTERM)
        rest = out.read()

    assert command.wait(20) == 130
    assert parse_event(rest).kind == "run_interrupted"


# --- train, for real -------------------------------------------------------------------------------------------------


@pytest.mark.training
@pytest.mark.timeout(300)
def test_a_real_training_prints_events_and_publishes_its_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["demo-model"]) == 0
    command = [sys.executable, "-m", "runner", "train", str(PROJECTS / "demo.toml"), "--json", "max_steps=4"]

    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)

    events = [parse_event(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert events[-1].kind == "run_succeeded"
    assert events[-1].summary.rung == "4bit"
    adapter = Path(events[-1].adapter_path)
    assert adapter.is_relative_to(tmp_path / "state" / "outputs" / "demo")
    assert (adapter / "adapter_model.safetensors").stat().st_size > 0
