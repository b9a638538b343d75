"""Whole attempts, for real: 4-bit, six steps, verified by a process of their own."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaForCausalLM

from runner.errors import ResumeMismatchError, TrainingError
from runner.events import (
    AdapterVerified,
    CheckpointSaved,
    ChildEvent,
    Evaluated,
    MetricsLogged,
    PhaseStarted,
    RunInterrupted,
    RunSucceeded,
    TrainingStarted,
)
from runner.spec import RunSpec
from runner.training.loop.checkpoints import complete_checkpoints
from runner.training.pipeline import train
from runner.training.stopping import StopSwitch

pytestmark = pytest.mark.timeout(180)


@dataclass
class Attempt:
    """An attempt that ran in this process."""

    run_dir: Path
    events: list[ChildEvent]
    end: RunSucceeded | RunInterrupted

    def losses(self) -> dict[int, float]:
        return {event.step: event.loss for event in self.events if isinstance(event, MetricsLogged)}


@contextmanager
def _hostile_hook() -> Iterator[None]:
    """Turn configs into dicts at every third forward pass of a training, as logging code is known to do."""
    calls = 0

    def turn_into_dict(module: nn.Module, _arguments: Any) -> None:
        nonlocal calls
        if isinstance(module, PeftModel) and module.training:
            calls += 1
            if calls % 3 == 0:
                wrapper: Any = module
                wrapper.config = wrapper.config.to_dict()
                inner: Any = module.get_base_model()
                inner.config = inner.config.to_dict()

    handle = register_module_forward_pre_hook(turn_into_dict)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def interrupted_and_resumed(
    child_spec: RunSpec, child_projects_dir: Path, models_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Attempt, Attempt]:
    """The job of `finished_child` again, stopped in its third step and gone on with, by a hostile hook accompanied."""
    job = tmp_path_factory.mktemp("interrupted")

    def attempt(number: int, *, stop_after: int | None) -> Attempt:
        run_dir = job / f"attempt-{number}"
        run_dir.mkdir()
        stop = StopSwitch()
        events: list[ChildEvent] = []

        def emit(event: ChildEvent) -> None:
            events.append(event)
            with (run_dir / "events.jsonl").open("a", encoding="utf-8") as log:
                log.write(event.model_dump_json() + "\n")
            if isinstance(event, MetricsLogged) and event.step == stop_after:
                stop.set()

        with _hostile_hook():
            end = train(child_spec, run_dir, emit, models_root=models_root, projects_dir=child_projects_dir, stop=stop)
        return Attempt(run_dir, events, end)

    return attempt(1, stop_after=2), attempt(2, stop_after=None)


def test_a_stopped_attempt_ends_with_a_complete_checkpoint(
    interrupted_and_resumed: tuple[Attempt, Attempt],
) -> None:
    stopped, _ = interrupted_and_resumed

    checkpoint = stopped.run_dir / "checkpoints" / "checkpoint-3"
    assert stopped.end == RunInterrupted(step=3, checkpoint=str(checkpoint), at=stopped.end.at)
    assert (checkpoint / "complete").is_file()
    assert isinstance(stopped.events[-1], CheckpointSaved)


def test_a_resumed_attempt_goes_on_exactly_where_the_other_stopped(
    interrupted_and_resumed: tuple[Attempt, Attempt], finished_child: Any
) -> None:
    stopped, resumed = interrupted_and_resumed
    whole = {event.step: event.loss for event in finished_child.events if isinstance(event, MetricsLogged)}

    [started] = [event for event in resumed.events if isinstance(event, TrainingStarted)]
    assert (started.resumed_from_step, started.total_steps) == (3, 6)
    assert list(stopped.losses()) == [1, 2, 3]
    assert list(resumed.losses()) == [4, 5, 6]
    assert stopped.losses() | resumed.losses() == whole


def test_a_resumed_attempt_keeps_the_first_attempts_first_loss_and_baseline(
    interrupted_and_resumed: tuple[Attempt, Attempt],
) -> None:
    stopped, resumed = interrupted_and_resumed

    assert isinstance(resumed.end, RunSucceeded)
    assert resumed.end.summary.loss_first == stopped.losses()[1]
    assert resumed.end.summary.loss_last == resumed.losses()[6]
    assert resumed.end.summary.steps == 6
    assert [event.when for event in resumed.events if isinstance(event, Evaluated)] == ["after"]
    [before] = [event for event in stopped.events if isinstance(event, Evaluated)]
    manifest = json.loads((resumed.run_dir / "adapter" / "manifest.json").read_text())
    assert manifest["metrics"]["before"] == before.model_dump(mode="json", exclude={"at", "kind", "when"})


def test_a_hook_that_turns_configs_into_dicts_changes_nothing_and_is_counted(
    interrupted_and_resumed: tuple[Attempt, Attempt], finished_child: Any
) -> None:
    _, resumed = interrupted_and_resumed

    assert isinstance(resumed.end, RunSucceeded)
    assert resumed.end.summary.guard_interceptions > 0
    receipt = json.loads((resumed.run_dir / "receipt.json").read_text())
    assert receipt["guard_interceptions"] == resumed.end.summary.guard_interceptions
    assert (resumed.run_dir / "adapter" / "adapter_model.safetensors").read_bytes() == (
        finished_child.run_dir / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_the_guard_leaves_no_trace_on_the_classes(interrupted_and_resumed: tuple[Attempt, Attempt]) -> None:
    assert interrupted_and_resumed
    assert "config" not in vars(LlamaForCausalLM)
    assert "config" not in vars(PeftModel)


def test_a_reached_end_is_not_trained_again(
    child_spec: RunSpec,
    child_projects_dir: Path,
    models_root: Path,
    interrupted_and_resumed: tuple[Attempt, Attempt],
) -> None:
    _, resumed = interrupted_and_resumed
    run_dir = resumed.run_dir.with_name("attempt-3")
    stop = StopSwitch()
    events: list[ChildEvent] = []

    def emit(event: ChildEvent) -> None:
        events.append(event)
        if isinstance(event, Evaluated):
            stop.set()

    end = train(child_spec, run_dir, emit, models_root=models_root, projects_dir=child_projects_dir, stop=stop)

    [started] = [event for event in events if isinstance(event, TrainingStarted)]
    assert started.resumed_from_step == started.total_steps == 6
    assert not [event for event in events if isinstance(event, MetricsLogged)]
    [after] = [event for event in events if isinstance(event, Evaluated)]
    [expected] = [event for event in resumed.events if isinstance(event, Evaluated)]
    assert after.exact_match == expected.exact_match
    assert isinstance(end, RunInterrupted)


def test_a_job_does_not_go_on_with_other_settings(
    child_spec: RunSpec,
    child_projects_dir: Path,
    models_root: Path,
    interrupted_and_resumed: tuple[Attempt, Attempt],
) -> None:
    _, resumed = interrupted_and_resumed
    training = child_spec.project.training.model_copy(
        update={"learning_rate": 1e-3, "save_steps": 7, "per_device_train_batch_size": 12}
    )
    changed = child_spec.model_copy(update={"project": child_spec.project.model_copy(update={"training": training})})
    run_dir = resumed.run_dir.with_name("attempt-4")

    with pytest.raises(ResumeMismatchError) as caught:
        train(changed, run_dir, lambda _: None, models_root=models_root, projects_dir=child_projects_dir)

    assert caught.value.code == "resume-mismatch"
    assert caught.value.message == (
        f"{complete_checkpoints(run_dir)[-1].path} was trained otherwise: training.learning_rate: 0.005 → 0.001; "
        "training.per_device_train_batch_size * gradient_accumulation_steps * compute.gpus: 6 → 12."
    )


def test_a_stop_before_training_leaves_no_checkpoint(
    child_spec: RunSpec, child_projects_dir: Path, models_root: Path, tmp_path: Path
) -> None:
    stop = StopSwitch()
    events: list[ChildEvent] = []
    stop.set()

    end = train(
        child_spec,
        tmp_path / "attempt-1",
        events.append,
        models_root=models_root,
        projects_dir=child_projects_dir,
        stop=stop,
    )

    assert end == RunInterrupted(step=0, checkpoint=None, at=end.at)
    # The first rung is not even tried.
    assert (events[-1].kind, "model_loaded" in {event.kind for event in events}) == ("phase_started", False)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (lambda: torch.empty(2**60, dtype=torch.uint8), "out-of-memory"),
        (lambda: Path("/dev/full").write_text("full"), "disk-full"),
    ],
)
def test_what_the_host_lacks_while_evaluating_is_said_in_words(  # noqa: PLR0917 - fixtures
    child_spec: RunSpec,
    child_projects_dir: Path,
    models_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], Any],
    code: str,
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "generate", lambda *_, **__: error())

    with pytest.raises(TrainingError) as caught:
        train(child_spec, tmp_path / "run", lambda _: None, models_root=models_root, projects_dir=child_projects_dir)

    assert caught.value.code == code
    assert caught.value.hint


def test_a_verified_attempt_says_how_close_it_is(interrupted_and_resumed: tuple[Attempt, Attempt]) -> None:
    _, resumed = interrupted_and_resumed

    [verified] = [event for event in resumed.events if isinstance(event, AdapterVerified)]
    assert verified.max_difference < verified.base_difference
    assert resumed.events[-1] == verified
    phases = [event.phase for event in resumed.events if isinstance(event, PhaseStarted)]
    assert phases[-1] == "verifying"
