"""Evaluation while training goes on: on held-out rows, without a trace in the training, and to some purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from peft.utils import get_peft_model_state_dict, load_peft_weights
from transformers import TrainerCallback

from runner.errors import DatasetError, TrainingError
from runner.events import ChildEvent, LossEvaluated
from runner.reports import BestStep
from runner.spec import RunSpec
from runner.training.data.mix import mix_data
from runner.training.loading.protected_load import protected_load
from runner.training.loop.best_checkpoint import Evaluations, find_best, judge
from runner.training.loop.callbacks import Checkpoints, Progress, StopAtStep
from runner.training.loop.checkpoints import complete_checkpoints, describe_run
from runner.training.loop.lora import add_lora, settle_precision
from runner.training.loop.trainer import AdapterTrainer, build_trainer
from runner.training.outcome.adapter import HELD_OUT_CURVE, TRAINING_CURVE, loss_curves, loss_figure, plot_loss
from runner.training.outcome.evaluation import Questions, evaluate
from runner.training.outcome.held_out import mean_loss
from runner.training.stopping import StopSwitch

MakeSpec = Callable[..., RunSpec]
STEPS = {
    "max_steps": 6,
    "logging_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 2e-3,
    "save_steps": 100,
}
NOTHING = Questions((), [], 1, [])
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1}


@dataclass
class Built:
    trainer: AdapterTrainer
    events: list[ChildEvent]

    @property
    def losses(self) -> list[tuple[float, float]]:
        return [(record["step"], record["loss"]) for record in self.trainer.state.log_history if "loss" in record]

    @property
    def measured(self) -> list[LossEvaluated]:
        return [event for event in self.events if isinstance(event, LossEvaluated)]


@contextmanager
def build(
    spec: RunSpec, models_root: Path, folder: Path, *, run: str = "run", callbacks: Sequence[TrainerCallback] = ()
) -> Iterator[Built]:
    """The trainer as the pipeline builds it."""
    events: list[ChildEvent] = []
    training = spec.project.training
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        mix = mix_data(spec, loaded.tokenizer, folder)
        trainer = build_trainer(
            add_lora(loaded.model, spec.project.lora, training.seed),
            loaded.tokenizer,
            mix,
            training,
            output_dir=folder / run / "checkpoints",
            compute_dtype=loaded.receipt.compute_dtype,
            callbacks=[
                Progress(events.append, settings=(), trainable_parameters=1),
                Checkpoints(events.append, facts=describe_run(spec, mix, "none", None), keep=1),
                *callbacks,
                *([Evaluations(events.append, training)] if training.eval_strategy != "no" else []),
            ],
        )
        yield Built(trainer, events)


class _StopAfter(TrainerCallback):
    """Sets the switch once a step is done, so that the step after it is the last."""

    def __init__(self, step: int, stop: StopSwitch) -> None:
        self._step = step
        self._stop = stop

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # the trainer's
        if state.global_step == self._step:
            self._stop.set()


def _history(*losses: float) -> list[dict[str, Any]]:
    return [{"step": 10 * number, "eval_loss": loss} for number, loss in enumerate(losses, start=1)] + [{"loss": 1.0}]


@pytest.mark.parametrize(
    ("losses", "threshold", "best_step", "waited"),
    [
        ([], 0.0, None, 0),
        ([3.0, 2.0, 2.5], 0.0, 20, 1),
        ([3.0, 2.0, 2.0, 1.0], 0.0, 40, 0),
        ([3.0, 2.95, 2.9], 0.2, 30, 2),
        ([float("nan"), float("nan")], 0.0, None, 2),
    ],
)
def test_the_best_is_the_lowest_and_waiting_counts_what_is_no_better(
    losses: list[float], threshold: float, best_step: int | None, waited: int
) -> None:
    verdict = judge(_history(*losses), threshold)

    assert (verdict.best_step, verdict.waited) == (best_step, waited)


def test_the_best_step_is_told_with_its_loss_and_the_last_ones_and_only_where_one_was_measured() -> None:
    assert find_best(_history(3.0, 2.0, 2.05)) == BestStep(step=20, loss=2.0, last_loss=2.05)
    assert find_best(_history()) is None


@pytest.mark.parametrize(("last_loss", "better"), [(2.05, False), (2.2, True), (float("nan"), False)])
def test_a_step_is_clearly_better_by_more_than_a_few_per_cent(last_loss: float, better: bool) -> None:
    assert BestStep(step=20, loss=2.0, last_loss=last_loss).clearly_better is better


@pytest.mark.parametrize("rung", ["4bit", "8bit"])
def test_evaluating_leaves_the_training_losses_as_they_are(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]], rung: str
) -> None:
    losses = {}
    for name, asked in (("without", {}), ("with", EVERY_STEP)):
        spec = make_spec(
            tmp_path / name,
            addition[:20],
            training=STEPS | asked,
            # Dropout draws random numbers at every step, so a disturbed generator shows at once.
            lora={"lora_dropout": 0.1, "modules_to_save": ["lm_head"]},
            evaluation={"held_out_percentage": 20.0},
            quantization={"ladder": [rung]},
        )
        with build(spec, models_root, tmp_path / name) as built:
            built.trainer.train_from(None)
            losses[name] = built.losses
            assert [event.step for event in built.measured] == ([1, 2, 3, 4, 5, 6] if asked else [])

    assert losses["with"] == losses["without"]
    assert len(losses["with"]) == 4


@pytest.mark.parametrize("keeps_its_own_loss", [False, True])
def test_the_loss_at_the_last_step_is_that_after_training_whatever_the_batch(
    make_spec: MakeSpec,
    models_root: Path,
    tmp_path: Path,
    addition: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    keeps_its_own_loss: bool,
) -> None:
    if keeps_its_own_loss:
        monkeypatch.setattr("runner.training.loop.trainer.add_loss_only_forward", lambda *_: False)
    sentence = "the team trains it on its own host. "
    texts = [{"text": f"Model {number}: {sentence * (1 + number % 4)}"} for number in range(20)]
    losses = {}
    for batch_size in (1, 4):
        spec = make_spec(
            tmp_path,
            addition[:20],
            texts,
            training=STEPS | {"max_steps": 2, "eval_strategy": "epoch", "per_device_eval_batch_size": batch_size},
            lora={"modules_to_save": ["lm_head"]},
            evaluation={"held_out_percentage": 25.0},
            # In bfloat16 the same rows in other batches round otherwise.
            quantization={"ladder": ["none"], "bnb_4bit_compute_dtype": "float32"},
        )
        with build(spec, models_root, tmp_path, run=f"batch-{batch_size}") as built:
            trainer = built.trainer
            trainer.train_from(None)
            model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
            settle_precision(model)
            tokenizer: Any = trainer.processing_class
            after = evaluate(
                model, tokenizer, NOTHING, when="after", stop=StopSwitch(), held_out=trainer.held_out, batch_size=4
            ).held_out

        assert [(one.rows, one.tokens) for one in after] == [(5, after[0].tokens), (5, after[1].tokens)]
        assert after[1].tokens > 10 * after[0].tokens
        losses[batch_size] = [event.loss for event in built.measured] + [mean_loss(after)]

    for measured in losses.values():
        assert measured == pytest.approx([losses[4][0]] * 2, rel=1e-6)


@pytest.fixture(scope="module")
def stopped_early(
    make_spec: MakeSpec, models_root: Path, tmp_path_factory: pytest.TempPathFactory, addition: list[dict[str, Any]]
) -> Iterator[tuple[Built, RunSpec, Path]]:
    """Sums learned by heart with a rate far too high, measured on texts that get worse by it. Its model is loaded."""
    folder = tmp_path_factory.mktemp("early")
    texts = [{"text": f"The team trains model {number} on its own host."} for number in range(20)]
    spec = make_spec(
        folder,
        addition[:20],
        texts,
        percentages=[100, 5],
        training=STEPS
        | EVERY_STEP
        | {
            "max_steps": 30,
            "learning_rate": 2e-2,
            "load_best_model_at_end": True,
            "early_stopping_patience": 3,
            "per_device_eval_batch_size": 2,
            "save_strategy": "no",
        },
        lora={"modules_to_save": ["lm_head"]},
        evaluation={"held_out_percentage": 50.0},
        quantization={"ladder": ["none"]},
    )
    sums, words = spec.project.traits
    whole = sums.model_copy(update={"datasets": (sums.datasets[0].model_copy(update={"held_out_percentage": 0.0}),)})
    spec = spec.model_copy(update={"project": spec.project.model_copy(update={"traits": (whole, words)})})
    with build(spec, models_root, folder) as built:
        built.trainer.train_from(None)
        yield built, spec, folder


def test_a_run_that_gets_no_better_ends_after_its_patience(stopped_early: tuple[Built, RunSpec, Path]) -> None:
    built, _, _ = stopped_early
    last = built.measured[-1]

    assert last.stops
    assert last.best_step is not None
    assert last.step == last.best_step + 3 == built.trainer.state.global_step < 30
    assert last.best_loss == min(event.loss for event in built.measured) < last.loss


def test_the_best_checkpoint_is_written_kept_and_taken(stopped_early: tuple[Built, RunSpec, Path]) -> None:
    built, _, folder = stopped_early
    best = built.measured[-1].best_step
    assert best is not None
    kept = {checkpoint.step: checkpoint.path for checkpoint in complete_checkpoints(folder / "run")}

    assert set(kept) == {best, built.trainer.state.global_step}
    assert built.trainer.adopt_best() == best
    taken = get_peft_model_state_dict(built.trainer.model)
    stored = load_peft_weights(str(kept[best]), device="cpu")
    assert taken.keys() == stored.keys()
    assert all(torch.equal(taken[name], stored[name]) for name in stored)


def test_a_run_that_had_stopped_early_is_not_gone_on_with(
    stopped_early: tuple[Built, RunSpec, Path], models_root: Path
) -> None:
    before, spec, folder = stopped_early
    newest = complete_checkpoints(folder / "run")[-1]

    with build(spec, models_root, folder) as built:
        built.trainer.train_from(newest)

        assert built.trainer.state.global_step == before.trainer.state.global_step
        assert not built.measured
        assert built.trainer.adopt_best() == before.measured[-1].best_step


def test_a_best_checkpoint_that_is_gone_is_missed(stopped_early: tuple[Built, RunSpec, Path]) -> None:
    built, _, folder = stopped_early
    state = built.trainer.state
    known, state.best_model_checkpoint = state.best_model_checkpoint, str(folder / "gone")

    with pytest.raises(TrainingError, match="not there any more") as caught:
        built.trainer.adopt_best()

    state.best_model_checkpoint = known
    assert caught.value.code == "best-checkpoint"


def test_both_losses_are_drawn(stopped_early: tuple[Built, RunSpec, Path], tmp_path: Path) -> None:
    history = stopped_early[0].trainer.state.log_history

    lines: Any = loss_figure(history, base_loss=9.0, adapter_step=1).axes[0].lines
    plot_loss(history, tmp_path / "loss.png", base_loss=9.0, adapter_step=1)

    drawn = {line.get_label().partition(":")[0]: [tuple(point) for point in line.get_xydata()] for line in lines}
    assert drawn.pop("the adapter") == [(1, 0), (1, 1)]
    assert drawn == loss_curves(history, base_loss=9.0)
    assert set(drawn) == {TRAINING_CURVE, HELD_OUT_CURVE}
    assert imread(tmp_path / "loss.png").shape == (480, 840, 4)


def test_the_held_out_curve_begins_with_the_base_model() -> None:
    history = [{"step": 1, "loss": 7.0}, {"step": 20, "eval_loss": 3.8}, {"step": 40, "eval_loss": 5.7}]

    assert loss_curves(history, base_loss=6.9) == {
        TRAINING_CURVE: [(1, 7.0)],
        HELD_OUT_CURVE: [(0, 6.9), (20, 3.8), (40, 5.7)],
    }
    assert not loss_curves(history[:1], base_loss=6.9)[HELD_OUT_CURVE]


def test_an_epoch_is_evaluated_at_its_end_and_the_last_step_once(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(
        tmp_path,
        addition[:10],
        training=STEPS | {"max_steps": 7, "eval_strategy": "epoch"},
        evaluation={"held_out_percentage": 10.0},
        quantization={"ladder": ["none"]},
    )

    with build(spec, models_root, tmp_path) as built:
        built.trainer.train_from(None)

    # Nine rows, four at a time: three steps an epoch.
    assert [event.step for event in built.measured] == [3, 6, 7]


def test_an_evaluation_without_any_held_out_row_is_refused_with_the_lever(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(
        tmp_path,
        addition[:9],
        training=STEPS | EVERY_STEP,
        evaluation={"held_out_percentage": 10.0},
        quantization={"ladder": ["none"]},
    )

    with pytest.raises(DatasetError) as caught, build(spec, models_root, tmp_path):
        pass

    assert caught.value.hint is not None
    assert "evaluation.held_out_percentage" in caught.value.hint


def test_a_run_that_was_stopped_and_resumed_measures_and_judges_as_a_whole_one(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(
        tmp_path,
        addition[:20],
        training=STEPS | EVERY_STEP | {"logging_steps": 1, "load_best_model_at_end": True},
        lora={"lora_dropout": 0.1, "modules_to_save": ["lm_head"]},
        evaluation={"held_out_percentage": 20.0},
        quantization={"ladder": ["4bit"]},
    )
    histories: dict[str, list[dict[str, Any]]] = {}
    with build(spec, models_root, tmp_path, run="whole") as whole:
        whole.trainer.train_from(None)
        histories["whole"] = whole.trainer.state.log_history
    stop = StopSwitch()

    with build(spec, models_root, tmp_path, run="stopped", callbacks=[StopAtStep(stop)]) as stopped:
        stopped.trainer.add_callback(_StopAfter(3, stop))
        stopped.trainer.train_from(None)
        assert stopped.trainer.state.global_step == 4
    with build(spec, models_root, tmp_path, run="stopped") as resumed:
        resumed.trainer.train_from(complete_checkpoints(tmp_path / "stopped")[-1])
        histories["resumed"] = resumed.trainer.state.log_history

    assert [event.step for event in stopped.measured + resumed.measured] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "eval_loss"):
        of_whole, of_both = ([r[key] for r in history if key in r] for history in histories.values())
        assert of_both == of_whole
    assert judge(histories["resumed"]) == judge(histories["whole"])
