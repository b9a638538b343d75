"""What a library would leave out without a word, or cannot do here, is refused by name, with the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from runner.errors import SpecError
from runner.projects import change_settings, load_project
from runner.spec import RunSpec

Problems = Callable[..., list[str]]
TRAINING = "max_steps = 5"


def _told(problems: Problems, settings: str) -> str:
    (problem,) = problems((TRAINING, f"{TRAINING}\n{settings}"))
    return problem.partition(": ")[2]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            'lr_scheduler_type = "constant"\nwarmup_steps = 2',
            (
                "training.warmup_steps: is left out by lr_scheduler_type = 'constant'; "
                'set lr_scheduler_type = "constant_with_warmup"'
            ),
        ),
        (
            'lr_scheduler_type = "reduce_lr_on_plateau"\neval_strategy = "steps"\nwarmup_ratio = 0.1',
            (
                "training.warmup_ratio: is left out by lr_scheduler_type = 'reduce_lr_on_plateau'; "
                "remove the warmup, or choose another schedule"
            ),
        ),
        (
            "lr_scheduler_kwargs = { num_cycles = 2 }",
            "training.lr_scheduler_kwargs: names 'num_cycles', but lr_scheduler_type = 'linear' takes nothing",
        ),
        (
            'lr_scheduler_type = "cosine"\nlr_scheduler_kwargs = { num_cicles = 2 }',
            (
                "training.lr_scheduler_kwargs: names 'num_cicles', but lr_scheduler_type = 'cosine' takes num_cycles; "
                "did you mean 'num_cycles'?"
            ),
        ),
        (
            'lr_scheduler_type = "cosine_with_min_lr"',
            (
                "training.lr_scheduler_kwargs: must give lr_scheduler_type = 'cosine_with_min_lr' either min_lr or "
                "min_lr_rate, such as { min_lr_rate = 0.1 }"
            ),
        ),
        (
            (
                'lr_scheduler_type = "warmup_stable_decay"\nwarmup_steps = 2\n'
                "lr_scheduler_kwargs = { num_decay_steps = 4 }"
            ),
            "training.lr_scheduler_kwargs: has 4 num_decay_steps, which with the warmup are more than max_steps = 5",
        ),
        (
            (
                'lr_scheduler_type = "warmup_stable_decay"\nwarmup_ratio = 0.4\n'
                "lr_scheduler_kwargs = { num_decay_steps = 4 }"
            ),
            "training.lr_scheduler_kwargs: has 4 num_decay_steps, which with the warmup are more than max_steps = 5",
        ),
        (
            "warmup_steps = 5",
            "training.warmup_steps: takes all of max_steps = 5, so that learning_rate is never reached; give it fewer",
        ),
        (
            "warmup_steps = 2.5",
            "training.warmup_steps: must be a whole number of steps, or below 1 a share of all steps",
        ),
        (
            'lr_scheduler_type = "reduce_lr_on_plateau"',
            'training.lr_scheduler_type: needs eval_strategy = "steps" or "epoch"',
        ),
        (
            'optim_args = "momentum=0.9"',
            "training.optim_args: names 'momentum', but of optim_args optim = 'auto' takes none",
        ),
        (
            'optim = "sgd"\noptim_args = "weight_decay=0.1"',
            "training.optim_args: names weight_decay; set training.weight_decay itself",
        ),
        ('optim = "sgd"\nadam_beta1 = 0.8', "training.adam_beta1: is left out by optim = 'sgd'; remove it"),
        ('optim = "lion_8bit"\nadam_epsilon = 1e-6', "training.adam_epsilon: is left out by optim = 'lion_8bit'"),
        (
            'optim = "sgd"\noptim_args = "momentum"',
            "training.optim_args: must be name=value, with commas between several",
        ),
        (
            'loss_type = "dft"\nlabel_smoothing_factor = 0.1',
            "training.label_smoothing_factor: is left out by loss_type = 'dft'; remove it",
        ),
        (
            "packing = true\npad_to_multiple_of = 8",
            "training.pad_to_multiple_of: is left out by packing = true, which pads nothing",
        ),
        (
            '[lora]\ninit_lora_weights = "orthogonal"\nr = 3',
            "lora.r: must be even for init_lora_weights = 'orthogonal'",
        ),
        (
            "early_stopping_threshold = 0.1",
            "training.early_stopping_threshold: is for early_stopping_patience; set that too, or remove this",
        ),
        ("bf16 = true", "training.bf16: cannot be set: [quantization] bnb_4bit_compute_dtype says what is computed in"),
        ('optim = "lomo"', "which needs a package that is in none of the tested stacks"),
        ('lr_scheduler_type = "greedy"', "which is in transformers 5 only"),
        ('[lora]\ninit_lora_weights = "pissa_niter_16"', "which changes the base model's weights"),
        ("[quantization]\nload_in_4bit = true", "quantization.load_in_4bit: cannot be set: ladder says it"),
    ],
)
def test_a_setting_without_its_effect_is_refused_by_name(problems: Problems, settings: str, expected: str) -> None:
    assert expected in _told(problems, settings)


@pytest.mark.parametrize(
    "overrides",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optim": "ademamix_8bit", "optim_args": "alpha=4", "adam_beta1": "0.8"},
        {"optim": "rmsprop_bnb_8bit"},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": "2"},
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": "{ num_decay_steps = 3 }",
            "warmup_steps": "2",
        },
    ],
)
def test_what_has_an_effect_is_taken(folder: Path, overrides: Mapping[str, str]) -> None:
    assert set(load_project(folder, "good", overrides).overrides) == {f"training.{name}" for name in overrides}


def test_a_stored_job_stays_readable_though_a_rule_has_come_since(folder: Path) -> None:
    spec = load_project(folder, "good")
    training = spec.project.training.model_copy(update={"lr_scheduler_type": "constant", "warmup_steps": 2.0})
    stored = spec.model_copy(update={"project": spec.project.model_copy(update={"training": training})})

    assert RunSpec.model_validate_json(stored.model_dump_json()) == stored
    with pytest.raises(SpecError) as caught:
        change_settings(folder, stored, {"seed": "3"})
    assert "constant_with_warmup" in str(caught.value.problems[0])


def test_an_override_that_cannot_be_set_is_answered_with_the_reason(problems: Problems) -> None:
    (problem,) = problems(overrides={"gradient_checkpointing_kwargs": "{}"})
    assert problem.endswith(
        "gradient_checkpointing_kwargs: cannot be set: use_reentrant is always false: else the gradient is lost "
        "where a layer's input needs none"
    )
