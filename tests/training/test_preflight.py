"""A plan with the real parts: preflight and trial of a run that mixes packing, accumulation and half epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from runner.child import spawn_training
from runner.errors import ModelAccessError, TargetModulesError
from runner.events import RunSucceeded
from runner.plan import Plan
from runner.planning import make_plan
from runner.run_directory import open_attempt
from runner.settings import RunnerSettings, load_settings
from runner.spec import RunSpec
from runner.training.preflight import preflight
from runner.trial import MOST_STEPS

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]

MakeSpec = Callable[..., RunSpec]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


@pytest.fixture(scope="module")
def settings(folder: Path, models_root: Path) -> RunnerSettings:
    return replace(
        load_settings({}),
        models_root=models_root,
        projects_dir=folder / "projects",
        output_root=folder / "outputs",
        state_dir=folder,
    )


@pytest.fixture(scope="module")
def spec(make_spec: MakeSpec, folder: Path, addition: list[dict[str, Any]]) -> RunSpec:
    return make_spec(
        folder / "projects",
        addition[::2],
        lora={"modules_to_save": ["lm_head"]},
        training={
            "num_train_epochs": 2.5,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_length": 64,
            "packing": True,
        },
        evaluation={"prompts": ["What is 3 + 4?"], "max_new_tokens": 4},
    )


@pytest.fixture(scope="module")
def planned(spec: RunSpec, settings: RunnerSettings) -> Plan:
    return make_plan(spec, settings)


def test_the_trial_counts_the_steps_that_the_preflight_counts(planned: Plan) -> None:
    assert planned.fits, planned.checks
    assert planned.preflight is not None
    assert planned.time is not None
    assert planned.time.origin == "measured"
    # In the trial transformers' own trainer counts.
    assert planned.preflight.total_steps == planned.time.total_steps
    assert planned.preflight.data.rows == 50


def test_the_arithmetic_is_near_what_the_trial_held(planned: Plan) -> None:
    assert planned.preflight is not None
    assert planned.memory is not None
    assert planned.memory.origin == "measured"
    if not torch.cuda.is_available():
        estimated = planned.preflight.rungs[0].training_bytes
        assert estimated == pytest.approx(planned.memory.peak_bytes, rel=0.2)


def test_nothing_of_the_trial_is_left(planned: Plan, settings: RunnerSettings) -> None:
    assert planned.time is not None
    assert list(settings.output_root.iterdir()) == []


def test_the_trainable_parameters_are_counted_without_weights(spec: RunSpec, settings: RunnerSettings) -> None:
    # 4 layers: r 16 on four projections of 256 x 256 and three of 256 x 512, and the output layer whole.
    lora = 4 * 16 * (4 * (256 + 256) + 3 * (256 + 512))
    assert preflight(spec, settings).trainable_parameters == lora + 512 * 256


def test_a_module_that_the_model_does_not_have_is_found_before_a_weight_is_read(
    spec: RunSpec, settings: RunnerSettings
) -> None:
    lora = spec.project.lora.model_copy(update={"target_modules": ("q_prj",)})
    wrong = spec.model_copy(update={"project": spec.project.model_copy(update={"lora": lora})})

    with pytest.raises(TargetModulesError, match="q_prj"):
        preflight(wrong, settings)


def test_a_base_model_that_is_nowhere_is_a_failed_check(spec: RunSpec, settings: RunnerSettings) -> None:
    wrong = spec.model_copy(update={"project": spec.project.model_copy(update={"base_model": "nobody/nothing"})})

    with pytest.raises(ModelAccessError):
        preflight(wrong, settings)
    missing = make_plan(wrong, settings)

    assert not missing.fits
    assert [(check.name, check.passed) for check in missing.checks] == [("base model", False)]
    assert "nobody/nothing" in missing.checks[0].message


def test_the_peak_of_a_trial_is_the_runs_though_its_first_batches_lack_the_one_long_row(
    make_spec: MakeSpec, settings: RunnerSettings, tmp_path: Path
) -> None:
    shape = {
        "per_device_train_batch_size": 4,
        "max_length": 2048,
        "max_steps": MOST_STEPS + 5,
        "logging_steps": MOST_STEPS + 5,
    }
    rows = [{"prompt": "a", "completion": "b"} for _ in range(4 * (MOST_STEPS + 5))]
    # The order that the trainer draws from the seed; the long row comes in the last batch, after the trial's end.
    last = list(SeedableRandomSampler(range(len(rows)), data_seed=0))[-1]
    rows[last]["completion"] = "b" * 4000
    projects_dir = tmp_path / "projects"
    spec = make_spec(
        projects_dir, rows, quantization={"ladder": ["4bit"]}, training={**shape, "seed": 0, "data_seed": 0}
    )
    settings = replace(settings, projects_dir=projects_dir, output_root=tmp_path / "outputs")

    planned = make_plan(spec, settings)
    with spawn_training(settings)(open_attempt(tmp_path / "run", spec).path) as child:
        for _ in child.events():
            pass
        end = child.end()

    assert isinstance(end, RunSucceeded), end
    assert end.summary.peak_bytes is not None
    assert planned.memory is not None
    assert planned.memory.origin == "measured"
    assert planned.memory.peak_bytes == pytest.approx(end.summary.peak_bytes, rel=0.2)
