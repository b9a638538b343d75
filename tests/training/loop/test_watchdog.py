"""Runs that go wrong are ended where it shows, with a code, and keep what was good."""

import faulthandler
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from runner.child import Child
from runner.errors import TrainingError
from runner.events import RunFailed
from runner.hyperparameters import Training
from runner.process_group import EVENTS_FD
from runner.resuming import RunFacts
from runner.spec import RunSpec
from runner.training.data.mix import mix_data
from runner.training.loading.protected_load import protected_load
from runner.training.loop.callbacks import Checkpoints
from runner.training.loop.lora import add_lora
from runner.training.loop.stall_watch import TICKS, StallWatch
from runner.training.loop.trainer import build_trainer
from runner.training.loop.watchdog import WINDOW, Watchdog
from runner.training.signs_of_life import SignsOfLife

MakeSpec = Callable[..., RunSpec]
FACTS = RunFacts(spec={}, rung="none", revision=None, base_fingerprint=None, quantization={}, datasets={}, tokens="")
SCRIPT = Path(__file__).parents[1] / "hanging_child.py"


def _train(
    make_spec: MakeSpec,
    models_root: Path,
    folder: Path,
    *callbacks: TrainerCallback,
    answers: Sequence[str] = tuple(map(str, range(1, 17))),
    modules_to_save: Sequence[str] = (),
    **training: Any,
) -> TrainingError:
    """Train on the tiny model with a report every 10 steps, which must end in an error."""
    rows = [{"prompt": f"What is {number} + 1?", "completion": answer} for number, answer in enumerate(answers)]
    settings = {"max_steps": 12, "per_device_train_batch_size": 4, "logging_steps": 10}
    lora = {"modules_to_save": modules_to_save}
    spec = make_spec(folder / "p", rows, training=settings, lora=lora, quantization={"ladder": ["none"]})
    # What no project may ask for is put in behind the check.
    asked = spec.project.training.model_copy(update=training)
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        trainer = build_trainer(
            add_lora(loaded.model, spec.project.lora, 1),
            loaded.tokenizer,
            mix_data(spec, loaded.tokenizer, folder / "p"),
            asked,
            output_dir=folder / "checkpoints",
            compute_dtype=loaded.receipt.compute_dtype,
            callbacks=[Checkpoints(lambda _: None, facts=FACTS, keep=9), *callbacks],
        )
        with pytest.raises(TrainingError) as caught:
            trainer.train_from(None)
    return caught.value


def _complete(folder: Path) -> list[str]:
    return sorted(marker.parent.name for marker in (folder / "checkpoints").glob("checkpoint-*/complete"))


def test_numbers_that_blow_up_are_noticed_at_their_step_and_never_saved(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path
) -> None:
    error = _train(make_spec, models_root, tmp_path, learning_rate=1e30, max_grad_norm=0.0, save_steps=1)

    assert error.code == "loss-not-finite"
    assert "at step 2 " in error.message
    assert "The last checkpoint is the one of step 1" in error.message
    assert _complete(tmp_path) == ["checkpoint-1"]


class _LoseTheAdapter(TrainerCallback):
    """After the second step both factors of every adapter are zero, so neither gets a gradient."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # the trainer's
        if state.global_step == 2:
            for name, parameter in kwargs["model"].named_parameters():
                if "lora_" in name:
                    parameter.data.zero_()


# With 0 transformers before 5 takes no norm by itself.
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_a_gradient_that_is_lost_on_the_way_ends_the_run_with_a_checkpoint(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, max_grad_norm: float
) -> None:
    # So small that Adam's memory of former gradients does not move anything from zero.
    error = _train(
        make_spec, models_root, tmp_path, _LoseTheAdapter(), learning_rate=1e-30, max_grad_norm=max_grad_norm
    )

    assert error.code == "no-gradient"
    assert "at step 5 " in error.message
    assert _complete(tmp_path) == ["checkpoint-5"]


def test_a_rate_that_throws_the_adapter_off_is_named_when_no_gradient_is_left(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path
) -> None:
    error = _train(make_spec, models_root, tmp_path, learning_rate=1e3, max_steps=40)

    assert error.code == "no-gradient"
    assert error.hint is not None
    assert "Lower training.learning_rate, which is 1000," in error.hint


class _BeSure(TrainerCallback):
    """After the sixth step, when the one answer is known by heart, nothing else is thought possible any more."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # the trainer's
        if state.global_step == 6:
            kwargs["model"].get_output_embeddings().weight.data.mul_(1e4)


def test_a_training_whose_loss_has_become_exactly_zero_is_ended_with_a_checkpoint(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path
) -> None:
    by_heart: dict[str, Any] = {"answers": ["7"], "modules_to_save": ["lm_head"], "learning_rate": 3e-3}
    error = _train(make_spec, models_root, tmp_path, _BeSure(), **by_heart)

    assert error.code == "loss-zero"
    assert "at step 9 " in error.message
    assert _complete(tmp_path) == ["checkpoint-9"]


def test_a_training_that_runs_away_from_the_start_is_ended_as_soon_as_its_mean_tells(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path
) -> None:
    off: dict[str, Any] = {"optim": "sgd", "learning_rate": 10.0, "per_device_train_batch_size": 16, "max_steps": 40}
    error = _train(make_spec, models_root, tmp_path, modules_to_save=["lm_head"], **off)

    assert error.code == "diverged"
    assert f"to step {WINDOW} " in error.message
    assert _complete(tmp_path) == []


def _look(watchdog: Watchdog, step: int, loss: float, grad_norm: float = 1.0) -> None:
    watchdog.look(step, torch.tensor(loss), torch.tensor(grad_norm), fp16=False, wait=False)


def test_a_loss_of_exactly_zero_from_the_start_ends_the_run() -> None:
    with pytest.raises(TrainingError) as caught:
        _look(Watchdog(Training()), 1, 0.0)

    assert caught.value.code == "loss-zero"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_ends_the_run_though_the_loss_is_one(bad: float) -> None:
    with pytest.raises(TrainingError) as caught:
        _look(Watchdog(Training()), 1, 1.0, bad)

    assert caught.value.code == "loss-not-finite"


def test_a_run_that_was_gone_on_with_has_learned_something_and_has_a_checkpoint() -> None:
    watchdog = Watchdog(Training())
    watchdog.on_train_begin(cast("Any", None), TrainerState(global_step=5), TrainerControl())

    _look(watchdog, 6, 1.0, 0.0)  # would be the end of one that has just begun
    with pytest.raises(TrainingError, match="The last checkpoint is the one of step 5, from before"):
        _look(watchdog, 7, math.nan)


def test_what_is_looked_at_is_the_loss_of_the_whole_step(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    logged: list[float] = []

    class _Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
            logged.append(logs["loss"])

    def look(_: Watchdog, step: int, loss: torch.Tensor, *_rest: Any, **__: Any) -> None:
        seen.append(loss.item())
        if step == 2:
            raise TrainingError("enough")

    monkeypatch.setattr(Watchdog, "look", look)
    halves: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    _train(make_spec, models_root, tmp_path, _Log(), logging_steps=1, **halves)

    assert logged == pytest.approx(seen[:1], rel=1e-5)


def test_a_loss_that_becomes_zero_and_stays_so_ends_the_run_after_a_checkpoint() -> None:
    watchdog = Watchdog(Training())
    findings = []
    for step, loss in enumerate([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], start=1):
        _look(watchdog, step, loss)
        findings.append(watchdog.finding and watchdog.finding.code)

    assert findings == [None] * 6 + ["loss-zero"]


def test_a_loss_that_runs_away_ends_the_run() -> None:
    watchdog = Watchdog(Training())
    for step, loss in enumerate([3.0] * WINDOW + [1.0] * WINDOW + [4.2] * 12, start=1):
        _look(watchdog, step, loss)

    with pytest.raises(TrainingError) as caught:
        _look(watchdog, 2 * WINDOW + 13, 4.2)  # the mean of 20 is above 3 from here on

    assert caught.value.code == "diverged"
    assert "No checkpoint had been written" in caught.value.message


def test_a_first_batch_that_is_easier_than_the_others_is_no_start_to_judge_by() -> None:
    watchdog = Watchdog(Training(per_device_train_batch_size=1))
    for step, loss in enumerate([0.3] + [2.6] * 2 * WINDOW, start=1):
        _look(watchdog, step, loss)

    assert watchdog.finding is None


# Up by less than 2 nats, and by more without having doubled.
@pytest.mark.parametrize(("lowest", "end"), [(1.0, 2.9), (4.0, 7.0)])
def test_a_loss_that_rises_a_little_does_not_end_the_run(lowest: float, end: float) -> None:
    watchdog = Watchdog(Training())
    for step, loss in enumerate([9.0] * WINDOW + [lowest] * WINDOW + [end] * WINDOW, start=1):
        _look(watchdog, step, loss)

    assert watchdog.finding is None


def test_the_watch_for_a_rising_loss_can_be_turned_off() -> None:
    watchdog = Watchdog(Training(max_loss_rise=0.0))
    for step, loss in enumerate([1.0] * WINDOW + [99.0] * WINDOW, start=1):
        _look(watchdog, step, loss)

    assert watchdog.finding is None


class _Moving(SignsOfLife):
    """Heard of at every look, until its training has lasted three times the limit."""

    def __init__(self, enough: threading.Event) -> None:
        super().__init__()
        self._looks, self._enough = 0, enough

    def heard(self) -> int:
        self._looks += 1
        if self._looks > 3 * TICKS:
            self._enough.set()
        return self._looks


def test_a_training_that_moves_may_last_longer_than_the_limit_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # It would end this process if the thread were late by as much as the limit.
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    stalls: list[RunFailed] = []
    enough = threading.Event()

    with StallWatch(0.1, stalls.append, _Moving(enough)):
        assert enough.wait(60)

    assert stalls == []


def test_without_a_limit_nobody_watches() -> None:
    before = {thread.name for thread in threading.enumerate()}
    with StallWatch(0.0, lambda _: None):
        assert {thread.name for thread in threading.enumerate()} == before


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("hangs_in", "message"),
    [("python", "Training has not moved for 3 s after step 0"), ("native", "inside native code")],
)
def test_a_step_that_never_ends_is_ended_with_the_stacks_of_all_threads(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, hangs_in: str, message: str
) -> None:
    spec = make_spec(
        tmp_path / "p",
        [{"prompt": "a", "completion": "b"}] * 4,
        training={"step_timeout_s": 3.0, "max_steps": 2},
        quantization={"ladder": ["none"]},
        evaluation={"held_out_percentage": 0.0},
    )
    run_dir = tmp_path / "attempt-1"
    run_dir.mkdir()
    (run_dir / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    folders = {"QLORA_MODELS_ROOT": str(models_root), "QLORA_PROJECTS_DIR": str(tmp_path / "p")}
    environ = dict(os.environ) | folders | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(SCRIPT), hangs_in, str(run_dir), "--events-fd", str(EVENTS_FD)]

    with Child(command, run_dir, environ=environ) as child:
        for _ in child.events():
            pass
        end = child.end()

    assert isinstance(end, RunFailed)
    assert end.code == "stalled"
    assert message in end.message
    log = (run_dir / "train.log").read_text(encoding="utf-8")
    assert "most recent call first" in log
    assert "hanging_child.py" in log
