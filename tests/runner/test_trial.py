"""A short run that is measured: what it tells of the whole one, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

from runner.child import Spawn
from runner.errors import TrainingError
from runner.planning import expected_time
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from runner.trial import Trial, run_trial
from tests.runner.plan_examples import BEGINNING, with_training

Scripted = Callable[[str], Spawn]


def test_a_trial_measures_steps_without_the_first_two_and_leaves_nothing(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    body = """
    assert (RUN_DIR / "longest-first").exists()
    step(1, 20, 100)
    step(2, 29, 102)
    at(30, "loss_evaluated", step=2, total_steps=12, loss=1.0, best_step=2, best_loss=1.0, stops=False)
    for number in range(3, 6): step(number, 30 + 3 * (number - 2), 100 + number)
    while not STOPPING: time.sleep(0.01)
    checkpoint(5)
    at(40, "run_interrupted", step=5, checkpoint=None)
    sys.exit(3)
    """

    trial = run_trial(run_spec, settings, scripted(BEGINNING + dedent(body)), lambda _: None)

    assert (trial.steps, trial.step_s, trial.total_steps) == (3, 3.0, 12)
    assert trial.evaluation_s == 1.0
    assert (trial.prepare_s, trial.model_s, trial.baseline_s, trial.checkpoint_s) == (8.0, 3.0, 2.0, 1.0)
    assert (trial.rung, trial.peak_bytes) == ("4bit", 105)
    assert list(settings.output_root.iterdir()) == []


def test_a_trial_of_a_run_with_a_single_step_takes_that(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    body = BEGINNING.replace("total_steps=12", "total_steps=1") + "step(1, 10, 100)\nsucceed()"

    trial = run_trial(run_spec, settings, scripted(body), lambda _: None)

    assert (trial.steps, trial.step_s, trial.total_steps) == (1, 2.0, 1)


def test_a_failed_trial_raises_what_the_run_would_have_said_and_keeps_its_log(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    body = "print('the traceback')\nemit('run_failed', code='out-of-memory', message='Too big.', hint='Smaller.')\n"

    with pytest.raises(TrainingError, match=r"Too big\.") as failed:
        run_trial(run_spec, settings, scripted(body + "sys.exit(1)"), lambda _: None)

    log = settings.state_dir / "logs" / "plan-demo.log"
    assert failed.value.code == "out-of-memory"
    assert failed.value.hint == f"Smaller.\nThe trial's log is {log}."
    assert "the traceback" in log.read_text()
    assert list(settings.output_root.iterdir()) == []


@pytest.mark.parametrize(
    ("evaluation", "evaluations"),
    [
        ({}, 0),
        ({"eval_strategy": "steps", "eval_steps": 300}, 4),
        ({"eval_strategy": "steps"}, 100),
        ({"eval_strategy": "epoch"}, 3),
    ],
)
def test_the_whole_time_is_what_is_done_once_and_every_step_and_evaluation(
    run_spec: RunSpec, evaluation: dict[str, Any], evaluations: int
) -> None:
    trial = Trial(
        rung="4bit",
        total_steps=1000,
        steps=4,
        step_s=0.5,
        import_s=10.0,
        prepare_s=20.0,
        model_s=3.0,
        baseline_s=2.0,
        evaluation_s=10.0,
        checkpoint_s=1.0,
        checkpoint_bytes=1,
        peak_bytes=None,
    )

    time = expected_time(with_training(run_spec, **evaluation), trial)

    assert time.training_s == 1000 * 0.5 + 5 * 1.0 + evaluations * 10.0  # a checkpoint at every 200th step
    assert time.duration_s == 20.0 + time.training_s + 6.0 + 3.0
