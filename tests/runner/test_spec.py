from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from runner.hyperparameters import Lora, Quantization, Training
from runner.projects import load_project
from runner.spec import DatasetEntry, ProjectSpec, RunSpec

PROJECTS = Path(__file__).parents[2] / "projects"
MINIMAL: dict[str, Any] = {
    "name": "x",
    "base_model": "tiny",
    "output_directory": "x",
    "traits": [{"trait_type": "t", "datasets": [{"dataset_id": 1}]}],
}


def spec_with(**changed: Any) -> ProjectSpec:
    return ProjectSpec.model_validate(MINIMAL | changed)


def test_four_keys_are_enough_and_the_rest_has_defaults() -> None:
    spec = spec_with()
    assert spec.training_type == "qlora"
    assert spec.quantization.ladder == ("4bit", "8bit", "none")
    assert spec.traits[0].datasets[0].percentage == 100
    assert (spec.lora, spec.training) == (Lora(), Training())
    assert spec.compute.pool == "gpu"


@pytest.mark.parametrize("key", MINIMAL)
def test_each_of_the_four_is_required(key: str) -> None:
    with pytest.raises(ValidationError, match="Field required"):
        ProjectSpec.model_validate({name: value for name, value in MINIMAL.items() if name != key})


def test_a_spec_cannot_be_changed_and_can_be_a_key() -> None:
    spec = spec_with(lora={"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]})
    with pytest.raises(ValidationError, match="frozen"):
        spec.lora.r = 3  # type: ignore[misc]  # what is tested
    assert hash(spec) == hash(spec_with(lora={"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"training": {"max_steps": "3"}},
        {"training": {"max_steps": 3.0}},
        {"training": {"packing": 1}},
        {"training": {"learning_rate": True}},
        {"training": {"learning_rate": float("nan")}},
        {"training": {"seed": 2**32}},
        {"lora": {"r": 0}},
        {"lora": {"rank": 8}},
        {"lora": {"modules_to_save": [""]}},
        {"quantization": {"ladder": []}},
        {"quantization": {"ladder": ["4bit", "4bit"]}},
        {"evaluation": {"prompts": ["x"] * 21}},
        {"training_type": "lora"},
        {"model_type": ""},
        {"description": "two\nlines"},
        {"traits": [{"trait_type": " ", "datasets": [{"dataset_id": 1}]}]},
        {"traits": [{"trait_type": "t", "datasets": [{"dataset_id": 1}, {"dataset_id": 1}]}]},
        {"name": "Upper"},
        {"base_model": "/models/llama"},
        {"base_model": "../llama"},
    ],
)
def test_nothing_is_converted_or_let_through_that_the_file_cannot_mean(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec_with(**wrong)


@pytest.mark.parametrize("path", ["", ".", "..", "a/../../b", "/srv", "~/x", "a\\b", "a\0b", "a\nb", " a", "x" * 201])
def test_a_path_that_leaves_its_root_is_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        spec_with(output_directory=path)
    with pytest.raises(ValidationError):
        DatasetEntry.model_validate({"name": "x", "path": path})


@pytest.mark.parametrize("path", ["a", "a/b", "a/b.c", "ärger", ".a", "a..b"])
def test_a_path_inside_its_root_is_fine(path: str) -> None:
    assert spec_with(output_directory=path).output_directory == path


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"load_best_model_at_end": True}, "load_best_model_at_end: needs eval_strategy"),
        ({"early_stopping_patience": 2}, "early_stopping_patience: needs eval_strategy"),
        ({"per_device_train_batch_size": 4, "per_device_eval_batch_size": 5}, r"at most .* \(4\)"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_with(training=training)
    assert spec_with(training=training | {"eval_strategy": "steps", "per_device_train_batch_size": 8})


def test_an_evaluation_on_held_out_rows_needs_some() -> None:
    evaluates: dict[str, Any] = {"training": {"eval_strategy": "epoch"}, "evaluation": {"held_out_percentage": 0.0}}
    with pytest.raises(ValidationError, match="held_out_percentage is 0"):
        spec_with(**evaluates)
    share = {"dataset_id": 1, "held_out_percentage": 10.0}
    assert spec_with(**evaluates, traits=[{"trait_type": "t", "datasets": [share]}])


def test_a_run_spec_survives_the_way_through_json() -> None:
    spec = load_project(PROJECTS, "demo", {"lora.r": "4", "ladder": "[4bit]"})
    again = RunSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.datasets[1].path == "data/addition.jsonl"
    assert again.project.quantization == Quantization(ladder=("4bit",))
    assert again.overrides == {"lora.r": "4", "quantization.ladder": "[4bit]"}
    assert RunSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_the_json_schema_refuses_unknown_keys_and_explains_the_known_ones() -> None:
    schema = ProjectSpec.model_json_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["base_model"]["description"].startswith("A folder under the models root")
    for table in ("Trait", "DatasetShare", "Quantization", "Lora", "Training", "Evaluation", "Compute"):
        assert schema["$defs"][table]["additionalProperties"] is False
    assert schema["$defs"]["DatasetShare"]["properties"]["percentage"]["maximum"] == 100
