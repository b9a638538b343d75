"""Every hyperparameter of a project reaches TRL or PEFT under its own name."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from pydantic import ValidationError
from trl.trainer.sft_config import SFTConfig

from runner.hyperparameters import Lora, Training
from runner.spec import RunSpec
from runner.training.loop.arguments import resolve_settings, settle_optimizer, training_arguments
from runner.training.loop.lora import lora_config

SET: dict[str, Any] = {
    "num_train_epochs": 2.5,
    "max_steps": 7,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine_with_restarts",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.3,
    "label_smoothing_factor": 0.1,
    "loss_type": "dft",
    "pad_to_multiple_of": 8,
    "tf32": False,
    "optim": "adagrad",
    "optim_args": "lr_decay=0.1",
    "max_length": 99,
    "packing": True,
    "packing_strategy": "wrapped",
    "dataloader_num_workers": 2,
    "torch_empty_cache_steps": 5,
    "logging_steps": 3,
    "save_strategy": "epoch",
    "save_steps": 11,
    "neftune_noise_alpha": 5.0,
    "seed": 5,
    "data_seed": 6,
}
NEEDS = {"lr_scheduler_kwargs": "lr_scheduler_type", "optim_args": "optim"}
ELSEWHERE = {
    "attn_implementation": "an argument of from_pretrained",
    "group_by_length": "named by the stack",
    "loraplus_lr_ratio": "AdapterTrainer.create_optimizer",
    "gradient_checkpointing": "named by the stack",
    "warmup_steps": "named by the stack",
    "warmup_ratio": "named by the stack",
    "completion_only_loss": "rows come masked",
    "assistant_only_loss": "rows come masked",
    "chat_template": "rows come rendered",
    "save_total_limit": "callbacks.Checkpoints removes after the marker is written",
    "eval_strategy": "best_checkpoint.Evaluations counts epochs",
    "eval_steps": "best_checkpoint.Evaluations",
    "per_device_eval_batch_size": "best_checkpoint.Evaluations",
    "load_best_model_at_end": "AdapterTrainer.adopt_best",
    "metric_for_best_model": "best_checkpoint.Evaluations",
    "early_stopping_patience": "best_checkpoint.Evaluations",
    "early_stopping_threshold": "best_checkpoint.Evaluations",
    "step_timeout_s": "the watchdog's",
    "max_loss_rise": "the watchdog's",
}
OTHER_DEFAULTS = {
    "pad_to_multiple_of": "TRL's 'auto' is none but on Trainium",
    "learning_rate": "2e-5 is for training all weights; QLoRA's paper and PEFT's examples take 2e-4",
    "optim": "by the host",
    "gradient_checkpointing": "costs a fifth of the speed where memory suffices",
    "save_steps": "a lost host costs at most so many steps",
    "save_total_limit": "a disk fills up otherwise",
    "assistant_only_loss": "an answer is learned, not the question",
    "completion_only_loss": "TRL's None means the same",
    "lr_scheduler_kwargs": "TRL's None means the same",
    "per_device_eval_batch_size": "none is the training's own size",
    "metric_for_best_model": "TRL's None means the training loss",
}
LORA_SET: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 6,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj"],
    "exclude_modules": ["v_proj"],
    "modules_to_save": ["lm_head"],
    "use_rslora": True,
    "use_dora": True,
    "bias": "lora_only",
    "init_lora_weights": "gaussian",
    "layers_to_transform": [0, 2],
    "layers_pattern": ["layers"],
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"q_proj": 16},
}


def _built(tmp_path: Path, **training: Any) -> SFTConfig:
    return training_arguments(Training(**training), tmp_path, "float32", on_cpu=True)


def test_every_hyperparameter_of_training_is_looked_at_here() -> None:
    assert {*SET, *ELSEWHERE} == set(Training.model_fields)


@pytest.mark.parametrize("name", SET)
def test_a_training_hyperparameter_is_what_trl_is_given(tmp_path: Path, name: str) -> None:
    needed = {one: SET[one] for one in (name, NEEDS.get(name)) if one is not None}
    assert getattr(_built(tmp_path, **needed), name) == SET[name]


@pytest.mark.parametrize(("by_length", "chosen"), [(True, "group_by_length"), (False, "random")])
def test_batches_are_chosen_as_group_by_length_says(tmp_path: Path, by_length: bool, chosen: str) -> None:
    built: Any = _built(tmp_path, group_by_length=by_length)
    told = getattr(built, "train_sampling_strategy", None) or ("group_by_length" if built.group_by_length else "random")
    assert told == chosen


@pytest.mark.parametrize("name", ["warmup_steps", "warmup_ratio"])
def test_a_share_of_all_steps_is_warmup_under_either_name(tmp_path: Path, name: str) -> None:
    assert _built(tmp_path, max_steps=50, **{name: 0.1}).get_warmup_steps(50) == 5


def test_defaults_are_the_libraries_own_where_no_reason_is_named() -> None:
    theirs = {field.name: field.default for field in fields(SFTConfig) if field.default is not MISSING}
    ours = {name: field.get_default(call_default_factory=True) for name, field in Training.model_fields.items()}
    without_reason = {
        name: (value, theirs[name])
        for name, value in ours.items()
        if name in theirs and name not in OTHER_DEFAULTS and value != theirs[name]
    }
    assert without_reason == {}


def test_every_hyperparameter_of_the_adapter_is_what_peft_is_given() -> None:
    assert set(LORA_SET) == set(Lora.model_fields)
    built = lora_config(Lora(**LORA_SET))
    given = {name: sorted(value) if isinstance(value := getattr(built, name), set) else value for name in LORA_SET}
    assert given == LORA_SET


def test_the_adapter_of_an_empty_section_is_that_of_an_empty_config() -> None:
    ours, theirs = lora_config(Lora()), LoraConfig(task_type="CAUSAL_LM")
    differing = {name for name in Lora.model_fields if getattr(ours, name) != getattr(theirs, name)}
    assert differing == {"r", "lora_alpha", "target_modules"}


@pytest.mark.parametrize(("device", "optim"), [("cuda", "paged_adamw_8bit"), ("cpu", "adamw_torch_fused")])
def test_the_host_chooses_the_optimizer_and_the_settings_say_so(run_spec: RunSpec, device: str, optim: str) -> None:
    settled = settle_optimizer(run_spec, device)
    told = {one.name: (one.value, one.origin) for one in resolve_settings(settled, "bfloat16", device)}
    assert told["optim"] == (optim, "host")


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        (
            Training,
            {"warmup_steps": 5, "warmup_ratio": 0.1},
            "warmup_ratio: says how long the warmup is, and so does warmup_steps",
        ),
        (Lora, {"layers_pattern": ["layers"]}, "layers_to_transform"),
        (Lora, {"layers_to_transform": [1]}, "target_modules as a list"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(section: Any, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        section(**values)


@pytest.fixture
def run_spec(make_spec: Any, tmp_path: Path) -> RunSpec:
    spec: RunSpec = make_spec(tmp_path, [{"text": "one"}])
    return spec
