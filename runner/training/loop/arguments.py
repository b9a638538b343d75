"""Hands a project's hyperparameters to TRL, under the names that the installed stack has for them, and lists them."""

from __future__ import annotations

import math
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import transformers
from packaging.version import Version
from transformers.utils.import_utils import is_torch_tf32_available
from trl.trainer.sft_config import SFTConfig

from runner.errors import TrainingError
from runner.hyperparameters import Training
from runner.optimizers import choose_optimizer
from runner.reports import Resolved
from runner.spec import RunSpec

_NEVER = 2**53
"""A step that no run reaches."""
SECTIONS = ("lora", "training", "quantization")
BITSANDBYTES_OPTIMIZERS = frozenset(
    {"adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"}
    | {"ademamix", "ademamix_8bit", "paged_ademamix_8bit", "paged_ademamix_32bit"}
    | {"lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit"}
    | {"rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"}
)


def settle_optimizer(spec: RunSpec, device_type: str) -> RunSpec:
    """Put the optimizer that this host takes in the place of `auto`, so that resume, manifest and replay know it."""
    training = spec.project.training
    optim = choose_optimizer(training.optim, on_cpu=device_type == "cpu")
    project = spec.project.model_copy(update={"training": training.model_copy(update={"optim": optim})})
    return spec.model_copy(update={"project": project})


def refuse_gpu_optimizer(training: Training) -> None:
    """Refuse what would otherwise fail in the first step, in bitsandbytes' words about tensors."""
    installed = metadata.version("bitsandbytes")
    if training.optim in BITSANDBYTES_OPTIMIZERS and Version(installed) < Version("0.50"):
        raise TrainingError(
            f"training.optim = {training.optim!r} needs a GPU with bitsandbytes {installed}, and this host has none.",
            hint='Set training.optim = "adamw_torch", or use a pool with GPUs.',
            code="optimizer",
        )


def refuse_tf32(training: Training) -> None:
    """Refuse what transformers would refuse without a word about this host."""
    if training.tf32 and not is_torch_tf32_available():
        raise TrainingError(
            "training.tf32 = true needs an Ampere or newer GPU, and this host has none.",
            hint="Remove it, or use a pool with such GPUs.",
            code="tf32",
        )


def resolve_settings(
    spec: RunSpec, compute_dtype: str, device: str, *, fitting: Training | None = None
) -> tuple[Resolved, ...]:
    """List every hyperparameter with its value and who decided it.

    Args:
        spec: What was asked for.
        compute_dtype: The receipt's.
        device: The receipt's.
        fitting: The settings that fit into this host's memory, where they are others.
    """
    resolved = []
    training = spec.project.training
    defaults = {section: type(getattr(spec.project, section))().model_dump(mode="json") for section in SECTIONS}
    for section in SECTIONS:
        for name, value in getattr(spec.project, section).model_dump(mode="json").items():
            path = f"{section}.{name}"
            if section == "training" and fitting is not None and getattr(fitting, name) != getattr(training, name):
                resolved.append(Resolved(name=name, value=_shown(getattr(fitting, name)), origin="host"))
            elif path in spec.overrides:
                resolved.append(Resolved(name=name, value=_shown(value), origin="override"))
            elif path in spec.stated:
                resolved.append(Resolved(name=name, value=_shown(value), origin="project"))
            elif value != defaults[section][name]:
                resolved.append(Resolved(name=name, value=_shown(value), origin="host"))
            else:
                resolved.append(Resolved(name=name, value=_shown(value), origin="default"))
    resolved.append(Resolved(name="compute_dtype", value=compute_dtype, origin="host"))
    resolved.append(Resolved(name="device", value=device, origin="host"))
    return tuple(resolved)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {one}" for key, one in value.items()) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if value is None else str(value)


def training_arguments(training: Training, output_dir: Path, compute_dtype: str, *, on_cpu: bool) -> SFTConfig:
    """Say to TRL what a project says.

    Args:
        training: The project's `[training]`.
        output_dir: Where `checkpoint-<step>` folders go.
        compute_dtype: The receipt's; autocast follows it.
        on_cpu: Whether there is no GPU to train on.
    """
    arguments = SFTConfig(
        output_dir=str(output_dir),
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        lr_scheduler_kwargs=dict(training.lr_scheduler_kwargs),
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        # Never 0, with which transformers before 5 takes no norm at all, and the watchdog would look at nothing.
        max_grad_norm=training.max_grad_norm or math.inf,
        label_smoothing_factor=training.label_smoothing_factor,
        loss_type=training.loss_type,
        optim=choose_optimizer(training.optim, on_cpu=on_cpu),
        optim_args=training.optim_args,
        max_length=training.max_length,
        packing=training.packing,
        packing_strategy=training.packing_strategy,
        pad_to_multiple_of=training.pad_to_multiple_of,
        dataset_kwargs={"skip_prepare_dataset": True},
        neftune_noise_alpha=training.neftune_noise_alpha,
        logging_strategy="steps",
        logging_steps=training.logging_steps,
        logging_first_step=True,
        # The filter would hide a loss that is not a number behind the mean of the others.
        logging_nan_inf_filter=False,
        save_strategy=training.save_strategy,
        save_steps=training.save_steps,
        save_total_limit=None,
        # Epochs are counted by `best_checkpoint.Evaluations`; a schedule that goes by the loss demands a strategy.
        eval_strategy="no" if training.eval_strategy == "no" else "steps",
        eval_steps=_NEVER if training.eval_strategy == "epoch" else training.eval_steps or training.logging_steps,
        per_device_eval_batch_size=training.eval_batch_size,
        prediction_loss_only=True,
        # Makes the trainer remember the best step; its own loading of it would tie save_steps to eval_steps.
        metric_for_best_model=training.metric_for_best_model if training.eval_strategy != "no" else None,
        seed=training.seed,
        data_seed=training.seed if training.data_seed is None else training.data_seed,
        dataloader_num_workers=training.dataloader_num_workers,
        torch_empty_cache_steps=training.torch_empty_cache_steps,
        bf16=compute_dtype == "bfloat16",
        fp16=compute_dtype == "float16" and not on_cpu,
        tf32=training.tf32,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        **_warmup(training.warmup_ratio or training.warmup_steps),
        **_sampling(training.group_by_length),
        **_checkpointing(training),
    )
    # On a host with several GPUs the trainer would spread every batch over all of them, which a quantized model does
    # not bear; transformers itself sets this for a model that lies on one.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # noqa: SLF001  # there is no public way
    return arguments


def _warmup(steps: float) -> dict[str, Any]:
    """Name the warmup as the installed transformers does: before 5 a share of all steps had an argument of its own."""
    if 0 < steps < 1 and Version(transformers.__version__) < Version("5"):
        return {"warmup_ratio": steps}
    return {"warmup_steps": steps if 0 < steps < 1 else int(steps)}


def _sampling(by_length: bool) -> dict[str, Any]:
    """Name the choice of batches as the installed transformers does: 5 has one argument for all ways to choose."""
    if "train_sampling_strategy" in {field.name for field in fields(SFTConfig)}:
        return {"train_sampling_strategy": "group_by_length" if by_length else "random"}
    return {"group_by_length": by_length}


def _checkpointing(training: Training) -> dict[str, Any]:
    """Name recomputing in the backward pass as the installed transformers does; the old name warns on newer ones."""
    names = {field.name for field in fields(SFTConfig)}
    prefix = "activation" if "activation_checkpointing" in names else "gradient"
    return {
        f"{prefix}_checkpointing": training.gradient_checkpointing,
        # Reentrant checkpointing loses the gradient where the inputs need none, as above a frozen embedding.
        f"{prefix}_checkpointing_kwargs": {"use_reentrant": False} if training.gradient_checkpointing else None,
    }
