from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runner.child import Spawn
from runner.errors import TrainingError
from runner.events import (
    AnyEvent,
    DataMixed,
    PhaseStarted,
    RunSucceeded,
    TrainingStarted,
)
from runner.history import find_earlier_run
from runner.plan import FittingBatch, Plan, Preflight, RungNeeds
from runner.plan_text import plan_text
from runner.planning import expected_time, plan_from
from runner.reports import Phase
from runner.settings import RunnerSettings, load_settings
from runner.spec import RunSpec
from runner.trial import Trial, run_trial
from runner.versions import report_versions
from tests.examples import RECEIPT, SHARE, SUMMARY

Scripted = Callable[[str], Spawn]
GB = 1_000_000_000

DATA = DataMixed(
    shares=(
        SHARE.model_copy(
            update={
                "dataset_name": "sums",
                "percentage": 50.0,
                "rows_available": 200,
                "rows_used": 100,
                "total_tokens": 2500,
                "held_out_rows": 10,
            }
        ),
    ),
    rows=100,
    longest_tokens=30,
    truncated_rows=0,
)
FOUND = Preflight(
    device="cpu (2 threads)",
    available_bytes=10 * GB,
    base_model="/models/tiny-llama",
    revision=None,
    fetch_bytes=0,
    cache_dir="/cache",
    gpus=1,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    halves_batch=True,
    data=DATA,
    total_steps=12,
    trainable_parameters=1000,
    rungs=(
        RungNeeds(rung="4bit", load_peak_bytes=2 * GB, steady_bytes=GB, training_bytes=3 * GB),
        RungNeeds(rung="none", load_peak_bytes=5 * GB, steady_bytes=4 * GB, training_bytes=6 * GB),
    ),
)
FINISHED = SUMMARY.model_copy(update={"train_s": 40.0, "duration_s": 55.0, "peak_bytes": 4 * GB})

BEGINNING = f"""
from datetime import datetime, timedelta, UTC
NOW = datetime(2026, 11, 24, tzinfo=UTC)

def at(seconds, kind, **fields):
    emit(kind, at=(NOW + timedelta(seconds=seconds)).isoformat(), **fields)

def step(number, seconds, peak):
    at(seconds, "metrics_logged", step=number, total_steps=12, epoch=1.0, loss=1.0, learning_rate=0.1, tokens_per_s=9.0,
       eta_s=1.0, peak_bytes=peak)

at(0, "phase_started", phase="versions")
at(1, "phase_started", phase="model")
at(4, "model_loaded", receipt={RECEIPT.model_dump(mode="json")!r})
at(5, "phase_started", phase="baseline")
at(7, "phase_started", phase="training")
at(8, "training_started", total_steps=12, trainable_parameters=1000)
"""
"""A child that needs 8 s up to its first step: 3 for the model, 2 for the answers before training."""


@pytest.fixture
def settings(tmp_path: Path) -> RunnerSettings:
    return replace(load_settings({}), output_root=tmp_path / "outputs", state_dir=tmp_path / "state", host="host-a")


def plan(found: Preflight, spec: RunSpec, settings: RunnerSettings, spawn: Spawn, *, measure: bool = True) -> Plan:
    return plan_from(found, spec, settings, measure=measure, tell=lambda _: None, spawn=spawn)


# --- the trial ----------------------------------------------------------------------------------------------------


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

    trial = run_trial(run_spec, settings, scripted(BEGINNING + _dedented(body)), lambda _: None)

    assert (trial.steps, trial.step_s, trial.total_steps) == (3, 3.0, 12)
    assert trial.evaluation_s == 1.0
    assert (trial.prepare_s, trial.model_s, trial.baseline_s, trial.checkpoint_s) == (8.0, 3.0, 2.0, 1.0)
    assert (trial.rung, trial.peak_bytes) == ("4bit", 105)
    assert list(settings.output_root.iterdir()) == []


def test_steps_before_the_batch_was_halved_do_not_count_and_the_plan_says_so(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    body = """
    step(1, 10, 100)
    step(2, 90, 200)
    at(91, "batch_halved", step=3, reason="out of memory", former_batch_size=8, per_device_train_batch_size=4,
       gradient_accumulation_steps=2)
    for number in range(1, 6): step(number, 100 + 2 * number, 300)
    succeed()
    """

    planned = plan(FOUND, run_spec, settings, scripted(BEGINNING + _dedented(body)))

    assert planned.time is not None
    assert planned.time.training_s == 12 * 2.0
    [told] = [check for check in planned.checks if check.name == "trial"]
    assert told.passed
    assert "per_device_train_batch_size 8 ran out of memory at step 3, trying 4" in told.message
    assert planned.memory is not None
    assert planned.memory.fitting is not None
    assert planned.memory.fitting.per_device_train_batch_size == 4


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

    time = expected_time(_training(run_spec, **evaluation), trial)

    assert time.training_s == 1000 * 0.5 + 5 * 1.0 + evaluations * 10.0  # a checkpoint at every 200th step
    assert time.duration_s == 20.0 + time.training_s + 6.0 + 3.0


# --- the plan -----------------------------------------------------------------------------------------------------


def test_a_run_that_does_not_fit_by_arithmetic_is_not_tried(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings, tmp_path: Path
) -> None:
    small = FOUND.model_copy(update={"available_bytes": 2 * GB})

    planned = plan(small, run_spec, settings, scripted(f"Path({str(tmp_path / 'tried')!r}).touch()\nsys.exit(1)"))

    assert not planned.fits
    [failed] = [check for check in planned.checks if not check.passed]
    assert (failed.name, failed.message) == ("memory", "3.0 GB of 2.0 GB available")
    assert not (tmp_path / "tried").exists()


def test_what_was_measured_outweighs_arithmetic(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    body = BEGINNING + f"for number in range(1, 6): step(number, 20 + 3 * number, {11 * GB})\nsucceed()"

    planned = plan(FOUND, run_spec, settings, scripted(body))

    assert planned.memory is not None
    assert (planned.memory.origin, planned.memory.peak_bytes) == ("measured", 11 * GB)
    assert not planned.fits


def test_a_trial_that_fails_is_a_failed_check(scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings) -> None:
    body = "emit('run_failed', code='x', message='No kernel.', hint=None)\nsys.exit(1)"

    planned = plan(FOUND, run_spec, settings, scripted(body))

    assert [(check.name, check.passed) for check in planned.checks] == [
        ("base model", True),
        ("disk", True),
        ("trial", False),
        ("memory", True),
    ]
    assert planned.time is None


def test_weights_that_are_not_here_are_checked_against_the_disk_and_not_tried(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings, tmp_path: Path
) -> None:
    huge = FOUND.model_copy(update={"fetch_bytes": 10**18, "cache_dir": str(tmp_path / "no" / "cache")})

    planned = plan(huge, run_spec, settings, scripted("raise SystemExit('tried')"))

    [failed] = [check for check in planned.checks if not check.passed]
    assert failed.name == "disk"
    assert "1000000000.0 GB for the base model" in failed.message
    assert "HF_HOME" in str(failed.hint)
    assert planned.time is None


# --- earlier runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def keep_run(settings: RunnerSettings, run_spec: RunSpec) -> Callable[..., None]:
    """Leave the events of a finished run of `run_spec` in the output root; keywords replace events by their kind."""

    def keep(spec: RunSpec = run_spec, **replaced: AnyEvent) -> None:
        attempt = settings.output_root / "demo" / "demo-abcde" / "attempt-1"
        attempt.mkdir(parents=True)
        (attempt / "spec.json").write_text(spec.model_dump_json())
        events = {
            "versions_reported": report_versions(FOUND.device),
            "data_mixed": DATA,
            "training_started": TrainingStarted(total_steps=12, trainable_parameters=1000),
            "run_succeeded": RunSucceeded(summary=FINISHED, adapter_path="adapter"),
            **replaced,
        }
        (attempt / "events.jsonl").write_text("".join(f"{event.model_dump_json()}\n" for event in events.values()))

    return keep


def _training(spec: RunSpec, **changed: Any) -> RunSpec:
    training = spec.project.training.model_copy(update=changed)
    return spec.model_copy(update={"project": spec.project.model_copy(update={"training": training})})


def test_an_earlier_run_of_the_same_shape_tells_time_and_memory_without_a_trial(
    keep_run: Callable[..., None], scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    # A run on this device has written its choice in the place of `auto`.
    keep_run(_training(run_spec, learning_rate=1e-5, optim="adamw_torch_fused"))

    planned = plan(FOUND, run_spec, settings, scripted("raise SystemExit('tried')"))

    assert planned.time is not None
    assert planned.memory is not None
    assert (planned.time.origin, planned.time.duration_s, planned.time.training_s) == ("history", 55.0, 40.0)
    assert (planned.memory.origin, planned.memory.peak_bytes) == ("history", 4 * GB)


@pytest.mark.parametrize(
    "replaced",
    [
        {"versions_reported": report_versions("cpu (64 threads)")},
        {"data_mixed": DATA.model_copy(update={"rows": 99})},
        {"training_started": TrainingStarted(total_steps=12, trainable_parameters=1000, resumed_from_step=6)},
        {"run_succeeded": PhaseStarted(phase=Phase.TRAINING)},
    ],
    ids=["another device", "other rows", "half of it", "cut off"],
)
def test_a_run_on_another_device_with_other_rows_or_not_whole_tells_nothing(
    replaced: dict[str, AnyEvent], keep_run: Callable[..., None], run_spec: RunSpec, settings: RunnerSettings
) -> None:
    keep_run(**replaced)

    assert find_earlier_run(run_spec, FOUND, settings.output_root) is None


def test_of_a_run_that_mixed_its_rows_again_the_later_mix_counts(
    keep_run: Callable[..., None], run_spec: RunSpec, settings: RunnerSettings
) -> None:
    keep_run(data_mixed=DATA.model_copy(update={"rows": 99}), training_started=DATA)

    assert find_earlier_run(run_spec, FOUND, settings.output_root) == FINISHED


def test_a_run_with_another_batch_or_with_unreadable_events_tells_nothing(
    keep_run: Callable[..., None], run_spec: RunSpec, settings: RunnerSettings
) -> None:
    keep_run()
    assert find_earlier_run(run_spec, FOUND, settings.output_root) == FINISHED
    assert find_earlier_run(_training(run_spec, per_device_train_batch_size=1), FOUND, settings.output_root) is None

    events = settings.output_root / "demo" / "demo-abcde" / "attempt-1" / "events.jsonl"
    events.write_text(events.read_text() + '{"kind": "of tomorrow"}\n')

    assert find_earlier_run(run_spec, FOUND, settings.output_root) is None


# --- what people see ------------------------------------------------------------------------------------------------


def test_a_plan_reads_well(scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings) -> None:
    planned = plan(FOUND, run_spec, settings, scripted(""), measure=False)
    disk = next(check for check in planned.checks if check.name == "disk")
    console = Console(width=200, color_system=None)

    with console.capture() as shown:
        console.print(plan_text(planned))

    assert [line.rstrip() for line in shown.get().splitlines()] == [
        "demo on host-a · cpu (2 threads)",
        "",
        "data      100 rows, the longest of 30 tokens",
        "          arithmetic / sums: 100 of 200 rows (50 %), 10 held out",
        "          trained tokens: arithmetic 1234 (100 %)",
        "training  12 steps of 8 rows, 2,500 tokens an epoch, 1,000 parameters trained",
        "time      not measured",
        "",
        "memory       at load   loaded  in training",
        "4-bit        2.00 GB  1.00 GB      3.00 GB  estimated",
        "unquantized  5.00 GB  4.00 GB      6.00 GB  estimated",
        "",
        "✓ base model: /models/tiny-llama",
        f"✓ disk: {disk.message}",
        "✓ memory: 3.0 GB of 10.0 GB available",
        "",
        "It fits.",
    ]


def test_a_plan_of_several_devices_fits_into_80_columns_and_speaks_of_each(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    console = Console(width=80, color_system=None)
    two = FOUND.model_copy(update={"gpus": 2, "gradient_accumulation_steps": 4, "halves_batch": False})
    planned = plan(two, run_spec, settings, scripted(""), measure=False)

    with console.capture() as shown:
        console.print(plan_text(planned))

    lines = [line.rstrip() for line in shown.get().splitlines()]
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert "12 steps of 8 rows 4 times on each of 2 devices" in text
    assert "memory of each device at load" in text
    assert "3.0 GB of 10.0 GB available on each device" in text


@pytest.mark.parametrize("halves", [True, False], ids=["the run halves", "nobody halves"])
def test_a_job_that_fits_with_a_smaller_batch_is_told_which(
    halves: bool, scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    batch = FittingBatch(per_device_train_batch_size=2, gradient_accumulation_steps=4, training_bytes=2 * GB)
    rungs = (FOUND.rungs[0].model_copy(update={"training_bytes": 12 * GB, "fitting": batch}),)
    large = FOUND.model_copy(update={"rungs": rungs, "halves_batch": halves})

    planned = plan(large, run_spec, settings, scripted(""), measure=False)

    memory = planned.checks[-1]
    settings_told = "training.per_device_train_batch_size=2 training.gradient_accumulation_steps=4"
    assert memory.message == (
        "12.0 GB of 10.0 GB available with per_device_train_batch_size = 8; about 2.0 GB with 2, which fits"
    )
    assert planned.fits == memory.passed == halves
    assert settings_told in str(memory.hint)


def test_a_plan_survives_its_way_through_json(scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings) -> None:
    planned = plan(FOUND, run_spec, settings, scripted(""), measure=False)

    assert Plan.model_validate_json(planned.model_dump_json()) == planned


def _dedented(body: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in body.splitlines())
