from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.errors import ResumeMismatchError
from runner.resuming import (
    RunFacts,
    read_facts,
    refuse_mismatch,
    spec_facts,
    tell_changes,
    tell_differences,
    write_facts,
)
from runner.spec import DatasetEntry, RunSpec

FACTS = RunFacts(
    spec={"lora.r": 16},
    rung="4bit",
    revision="abc",
    base_fingerprint=None,
    quantization={"quantization.bnb_4bit_quant_type": "nf4"},
    datasets={"3": ["data/x.jsonl", "11"]},
    tokens="22",
)


def _changed(spec: RunSpec, section: str, **values: Any) -> RunSpec:
    part = getattr(spec.project, section).model_copy(update=values)
    return spec.model_copy(update={"project": spec.project.model_copy(update={section: part})})


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        ("training", {"learning_rate": 5e-4}, ["training.learning_rate: 0.0002 → 0.0005"]),
        ("training", {"packing": True}, ["training.packing: false → true"]),
        ("training", {"neftune_noise_alpha": 5.0}, ["training.neftune_noise_alpha: none → 5"]),
        (
            "training",
            {"gradient_accumulation_steps": 2},
            ["training.per_device_train_batch_size * gradient_accumulation_steps * compute.gpus: 8 → 16"],
        ),
        ("lora", {"target_modules": ("q_proj", "v_proj")}, ["lora.target_modules: all-linear → q_proj, v_proj"]),
        ("training", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, []),
        ("training", {"logging_steps": 1, "save_steps": 1, "save_total_limit": 1}, []),
        ("evaluation", {"prompts": ("Well?",)}, []),
        ("quantization", {"ladder": ("8bit",)}, []),
        ("compute", {"pool": "other"}, []),
        (
            "compute",
            {"gpus": 2},
            ["training.per_device_train_batch_size * gradient_accumulation_steps * compute.gpus: 8 → 16"],
        ),
    ],
)
def test_a_changed_setting_is_told_where_it_changes_what_is_learned(
    run_spec: RunSpec, section: str, values: dict[str, Any], told: list[str]
) -> None:
    assert tell_changes(spec_facts(run_spec), spec_facts(_changed(run_spec, section, **values))) == told


@pytest.mark.parametrize(("dropout", "told"), [(0.0, []), (0.1, ["compute.gpus: 1 → 2"])])
def test_the_same_batch_on_other_gpus_is_the_same_job_unless_they_draw_random_numbers(
    run_spec: RunSpec, dropout: float, told: list[str]
) -> None:
    alone = _changed(run_spec, "lora", lora_dropout=dropout)
    pair = _changed(_changed(alone, "compute", gpus=2), "training", per_device_train_batch_size=4)

    assert tell_changes(spec_facts(alone), spec_facts(pair)) == told


def test_another_share_of_a_dataset_is_told(run_spec: RunSpec) -> None:
    [trait] = run_spec.project.traits
    less = trait.model_copy(update={"datasets": (trait.datasets[0].model_copy(update={"percentage": 50.0}),)})
    project = run_spec.project.model_copy(update={"traits": (less, trait)})

    told = tell_changes(spec_facts(run_spec), spec_facts(run_spec.model_copy(update={"project": project})))

    assert told[0] == "traits[0].datasets[0].percentage: 100 → 50"
    assert "traits[1].trait_type: none → arithmetic" in told


def test_a_file_that_only_moved_is_the_same_data(run_spec: RunSpec) -> None:
    here, there = (
        run_spec.model_copy(update={"datasets": {1: DatasetEntry(name=name, path=f"{name}.jsonl")}})
        for name in ("here", "there")
    )

    assert spec_facts(here) == spec_facts(there)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"spec": {"lora.r": 8}}, ["lora.r: 16 → 8"]),
        ({"rung": "8bit", "quantization": {"quantization.llm_int8_threshold": 6.0}}, ["rung: 4bit → 8bit"]),
        ({"revision": "def"}, ["base model revision: abc → def"]),
        ({"base_fingerprint": "33"}, ["the base model's files have changed"]),
        (
            {"quantization": {"quantization.bnb_4bit_quant_type": "fp4"}},
            ["quantization.bnb_4bit_quant_type: nf4 → fp4"],
        ),
        (
            {"datasets": {"3": ["data/y.jsonl", "12"]}, "tokens": "23"},
            ["dataset 3: data/y.jsonl has other content"],
        ),
        ({"datasets": {"3": ["data/y.jsonl", "11"]}}, []),
        ({"tokens": "23"}, ["the same rows give other tokens: the tokenizer or its chat template has changed"]),
    ],
)
def test_what_shows_only_with_model_and_rows_is_told_too(values: dict[str, Any], told: list[str]) -> None:
    assert tell_differences(FACTS, replace(FACTS, **values)) == told


def test_a_marker_gives_back_what_was_written(tmp_path: Path) -> None:
    write_facts(FACTS, tmp_path / "complete")

    assert read_facts(tmp_path / "complete") == FACTS


@pytest.mark.parametrize("text", ["", "0123abcd\n", "{}", '{"spec": {}, "more": 1}'])
def test_a_marker_that_tells_nothing_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "complete").write_text(text)

    with pytest.raises(ResumeMismatchError, match="does not say how it was trained"):
        read_facts(tmp_path / "complete")


def test_many_differences_are_counted() -> None:
    with pytest.raises(ResumeMismatchError, match=r"otherwise: 0; 1; 2; 3; 4; 5; 6; 7; and 2 more\.") as caught:
        refuse_mismatch(Path("checkpoint-3"), [str(number) for number in range(10)])

    assert caught.value.hint is not None


def test_without_a_difference_nothing_is_refused() -> None:
    refuse_mismatch(Path("checkpoint-3"), [])


@pytest.mark.parametrize(("loss_type", "told"), [("nll", []), ("dft", ["training.loss_type: nll → dft"])])
def test_a_setting_that_a_former_version_lacked_was_at_its_default(
    run_spec: RunSpec, loss_type: str, told: list[str]
) -> None:
    now = spec_facts(_changed(run_spec, "training", loss_type=loss_type))
    before = {path: value for path, value in now.items() if path != "training.loss_type"}

    assert tell_changes(before, now) == told
