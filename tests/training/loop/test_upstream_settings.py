"""Every hyperparameter of the installed libraries is settable in a project file, or refused there with a reason."""

import inspect
import re
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig
from transformers import BitsAndBytesConfig, Trainer
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames
from trl.trainer.sft_config import SFTConfig

from runner.hyperparameters import Lora, Quantization, Training
from runner.optimizers import TAKEN as OF_OPTIMIZERS
from runner.optimizers import Optimizer
from runner.refused_settings import REFUSED, REFUSED_VALUES
from runner.schedules import TAKEN, WITHOUT_WARMUP, Schedule
from runner.training.loop.arguments import training_arguments
from runner.training.loop.rehearsal import refuse_left_out

ONLY_BEFORE_5 = {
    "adafactor",
    "fp16_backend",
    "fp16_opt_level",
    "fsdp_min_num_params",
    "fsdp_transformer_layer_cls_to_wrap",
    "half_precision_backend",
    "include_inputs_for_metrics",
    "include_tokens_per_second",
    "jit_mode_eval",
    "logging_dir",
    "mp_parameters",
    "no_cuda",
    "overwrite_output_dir",
    "past_index",
    "per_gpu_eval_batch_size",
    "per_gpu_train_batch_size",
    "push_to_hub_model_id",
    "push_to_hub_organization",
    "push_to_hub_token",
    "ray_scope",
    "save_safetensors",
    "torchdynamo",
    "tpu_metrics_debug",
    "tpu_num_cores",
    "use_legacy_prediction_loop",
    "use_mps_device",
}
ONLY_NOW = {
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "dataloader_in_order",
    "dataloader_multiprocessing_context",
    "ddp_static_graph",
    "enable_jit_checkpoint",
    "router_aux_loss_coef",
    "shuffle_dataset",
    "train_sampling_strategy",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "truncation_mode",
    "trust_remote_code",
    "use_cache",
    "kasa_config",
    "lora_ga_config",
    "monteclora_config",
    "use_bdlora",
    "velora_config",
}
OF_THE_OTHER_STACK = ONLY_BEFORE_5 if Version(transformers.__version__) >= Version("5") else ONLY_NOW
UPSTREAM: dict[str, set[str]] = {
    "training": {field.name for field in fields(SFTConfig) if field.init},
    "lora": {field.name for field in fields(LoraConfig) if field.init},
    "quantization": set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"},
}
OURS: dict[str, Any] = {"training": Training, "lora": Lora, "quantization": Quantization}


@pytest.mark.parametrize("table", UPSTREAM)
def test_every_name_that_a_library_has_is_settable_or_refused_with_a_reason(table: str) -> None:
    settable, refused = set(OURS[table].model_fields), set(REFUSED[table])
    assert UPSTREAM[table] - settable - refused == set(), "decide: settable, or in runner.refused_settings with why"
    assert settable & refused == set()


@pytest.mark.parametrize("table", UPSTREAM)
def test_no_refused_name_has_gone_from_the_libraries(table: str) -> None:
    assert set(REFUSED[table]) - UPSTREAM[table] - OF_THE_OTHER_STACK == set()


def _values(setting: str) -> set[str]:
    return {value for value in REFUSED_VALUES[setting] if not value.endswith("_")}


@pytest.mark.parametrize(
    ("setting", "upstream", "ours"),
    [
        ("training.optim", OptimizerNames, Optimizer),
        ("training.lr_scheduler_type", SchedulerType, Schedule),
    ],
)
def test_every_optimizer_and_schedule_is_settable_or_refused_with_a_reason(
    setting: str, upstream: Any, ours: Any
) -> None:
    settable = set(get_args(ours)) - {"auto"}
    assert {one.value for one in upstream} - settable - _values(setting) == set()
    assert settable - {one.value for one in upstream} == set()
    assert settable & _values(setting) == set()


@pytest.mark.parametrize("name", ["packing_strategy", "loss_type"])
def test_every_choice_that_trl_names_is_settable_or_refused_with_a_reason(name: str) -> None:
    (field,) = (field for field in fields(SFTConfig) if field.name == name)
    # Versions that do not list them quote them where they explain the setting.
    choices = set(field.metadata.get("choices") or re.findall(r"`['\"](\w+)['\"]`", field.metadata["help"]))
    settable = set(get_args(Training.model_fields[name].annotation))
    assert choices >= settable
    assert choices - settable - _values(f"training.{name}") == set()


def test_every_start_of_an_adapter_that_peft_names_is_settable_or_refused_with_a_reason() -> None:
    (field,) = (field for field in fields(LoraConfig) if field.name == "init_lora_weights")
    starts = set(re.findall(r"'([a-z_]+)", str(field.type)))  # its annotation is text, with 'pissa_niter_[number …]'
    _, words = get_args(Lora.model_fields["init_lora_weights"].annotation)
    assert starts >= set(get_args(words))
    assert starts - set(get_args(words)) - set(REFUSED_VALUES["lora.init_lora_weights"]) == set()


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in OF_OPTIMIZERS.items() for name in sorted(names)]
)
def test_an_argument_of_an_optimizer_reaches_it_or_is_refused_by_name(tmp_path: Path, family: str, name: str) -> None:
    value = {"nesterov": "true", "centered": "true", "t_alpha": "7", "t_beta3": "7"}.get(name, "0.5")
    training = Training.model_validate({"optim": family, "optim_args": f"{name}={value}"})
    arguments = training_arguments(training, tmp_path, "float32", on_cpu=True)
    given = Trainer.get_optimizer_cls_and_kwargs(arguments)[1]
    arguments.optim_args = None
    has_an_effect = given != Trainer.get_optimizer_cls_and_kwargs(arguments)[1]

    with nullcontext() if has_an_effect else pytest.raises(ValueError, match=f"leaves out {name}, newer ones do not"):
        refuse_left_out(training, given)


@pytest.mark.parametrize("kind", get_args(Schedule))
def test_a_schedule_takes_what_its_function_has_arguments_for(kind: Schedule) -> None:
    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)]
    names = set(inspect.signature(function).parameters)
    if kind == "reduce_lr_on_plateau":
        names = set(inspect.signature(torch.optim.lr_scheduler.ReduceLROnPlateau).parameters) - {"mode"}
    decided = {"optimizer", "last_epoch", "num_warmup_steps", "num_training_steps", "kwargs"}
    assert names - decided == TAKEN[kind]
    assert ("num_warmup_steps" not in names) == (kind in WITHOUT_WARMUP)
