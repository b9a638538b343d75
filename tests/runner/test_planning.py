"""Whether a job fits on this host, and how people are told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from rich.console import Console

from runner.child import Spawn
from runner.plan import FittingBatch, Plan, Preflight
from runner.plan_text import plan_text
from runner.planning import plan_from
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from tests.runner.plan_examples import BEGINNING, FOUND, GB

Scripted = Callable[[str], Spawn]


def plan(found: Preflight, spec: RunSpec, settings: RunnerSettings, spawn: Spawn, *, measure: bool = True) -> Plan:
    return plan_from(found, spec, settings, measure=measure, tell=lambda _: None, spawn=spawn)


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


def test_weights_that_are_not_here_are_not_fetched_for_a_trial(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings, tmp_path: Path
) -> None:
    remote = FOUND.model_copy(update={"fetch_bytes": 1, "cache_dir": str(tmp_path / "cache")})

    planned = plan(remote, run_spec, settings, scripted("raise SystemExit('tried')"))

    assert [(check.name, check.passed) for check in planned.checks] == [
        ("base model", True),
        ("disk", True),
        ("memory", True),
    ]
    assert planned.time is None


def test_what_lies_on_one_disk_has_to_fit_there_together(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    settings.output_root.mkdir(parents=True, exist_ok=True)
    most = int(0.7 * shutil.disk_usage(settings.output_root).free)
    # In float32 with two moments: so many checkpoints as are kept, one more while it is written, and the adapter.
    trainable = most // (12 * (run_spec.project.training.save_total_limit + 2))
    one_disk = {
        "fetch_bytes": most,
        "cache_dir": str(settings.output_root / "cache"),
        "trainable_parameters": trainable,
    }

    planned = plan(FOUND.model_copy(update=one_disk), run_spec, settings, scripted(""), measure=False)

    [failed] = [check for check in planned.checks if not check.passed]
    assert failed.name == "disk"
    assert " for checkpoints and adapter and " in failed.message
    assert "QLORA_OUTPUT_ROOT or HF_HOME" in str(failed.hint)


def test_a_model_whose_loading_takes_more_than_its_training_does_not_fit_either(
    scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    rungs = (FOUND.rungs[0].model_copy(update={"load_peak_bytes": 12 * GB}),)

    planned = plan(FOUND.model_copy(update={"rungs": rungs}), run_spec, settings, scripted(""), measure=False)

    assert [check.message for check in planned.checks if not check.passed] == ["12.0 GB of 10.0 GB available"]


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

    planned = plan(FOUND, run_spec, settings, scripted(BEGINNING + dedent(body)))

    assert planned.time is not None
    assert planned.time.training_s == 12 * 2.0
    [told] = [check for check in planned.checks if check.name == "trial"]
    assert told.passed
    assert "per_device_train_batch_size 8 ran out of memory at step 3, trying 4" in told.message
    assert planned.memory is not None
    assert planned.memory.fitting is not None
    assert planned.memory.fitting.per_device_train_batch_size == 4


# --- what people see ------------------------------------------------------------------------------------------------


def test_a_plan_reads_well(scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings) -> None:
    planned = plan(FOUND, run_spec, settings, scripted(""), measure=False)
    disk = next(check for check in planned.checks if check.name == "disk")
    console = Console(width=200, color_system=None)

    with console.capture() as shown:
        console.print(plan_text(planned))

    assert shown.get().splitlines() == [
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
