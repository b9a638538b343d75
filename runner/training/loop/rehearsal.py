"""Begins on an empty model what else would fail only after the base model has loaded: adapter, optimizer, schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import Trainer, get_scheduler

from runner.errors import TrainingError, joined, noted
from runner.hyperparameters import Training
from runner.optimizers import argument_names, family_of
from runner.spec import RunSpec
from runner.training.loading.rung import require_attention
from runner.training.loop.arguments import refuse_gpu_optimizer, refuse_tf32, training_arguments
from runner.training.loop.lora import add_lora

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_STEPS = 20
"""Of the schedule that is tried; how many it is makes no difference to what it accepts."""


def rehearse(spec: RunSpec, model: PreTrainedModel, device: torch.device) -> PeftModel:
    """Put the adapter onto a model without weights, and make optimizer and schedule for it.

    Args:
        spec: The attempt's, its optimizer settled.
        model: From `build_empty_model`.
        device: What will train.

    Returns:
        The model with its adapter, still empty.

    Raises:
        TargetModulesError: `[lora]` names what the model does not have.
        TrainingError: The host lacks what a setting needs, or optimizer or schedule do not take what they are given.
            Tells all that is wrong.
    """
    refused: list[TrainingError] = []
    wrapped = None
    with noted(refused):
        wrapped = add_lora(model, spec.project.lora, spec.project.training.seed)
    with noted(refused):
        require_attention(spec.project.training.attn_implementation)
    before = len(refused)
    with noted(refused):
        refuse_tf32(spec.project.training)
    if len(refused) == before:
        _try_optimizer(spec, device, refused)
    if wrapped is None or refused:
        raise joined(refused) from refused[0]
    return wrapped


def _try_optimizer(spec: RunSpec, device: torch.device, refused: list[TrainingError]) -> None:
    training, on_cpu = spec.project.training, device.type == "cpu"
    if on_cpu:
        before = len(refused)
        with noted(refused):
            refuse_gpu_optimizer(training)
        if len(refused) > before:
            return
    # Nothing is written there before training begins.
    arguments = training_arguments(training, Path(gettempdir()), "float32", on_cpu=on_cpu)
    with noted(refused), _explained(f"training.optim_args = {training.optim_args!r}", f"optim = {training.optim!r}"):
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        refuse_left_out(training, options)
        kind([torch.nn.Parameter(torch.zeros(1))], **options)
    given = f"training.lr_scheduler_kwargs = {dict(training.lr_scheduler_kwargs)}"
    with noted(refused), _explained(given, f"lr_scheduler_type = {training.lr_scheduler_type!r}"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
        schedule = get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=arguments.get_warmup_steps(_STEPS),
            num_training_steps=_STEPS,
            scheduler_specific_kwargs=dict(training.lr_scheduler_kwargs),
        )
        # Some look at what they were given only when they have to use it.
        for _ in range(_STEPS):
            optimizer.step()
            schedule.step(*([0.0] if training.lr_scheduler_type == "reduce_lr_on_plateau" else []))


def refuse_left_out(training: Training, options: dict[str, Any]) -> None:
    """Refuse what the installed transformers does not hand on to an optimizer of PyTorch.

    Args:
        training: The project's `[training]`.
        options: What transformers makes of it for the optimizer.

    Raises:
        ValueError: It leaves something out.
    """
    if training.optim_args is None or family_of(training.optim) == "ademamix":
        return
    left_out = [name for name in argument_names(training.optim_args) if name not in options]
    if left_out:
        raise ValueError(f"transformers {transformers.__version__} leaves out {', '.join(left_out)}, newer ones do not")


@contextmanager
def _explained(given: str, of: str) -> Iterator[None]:
    """Say in the project's words what a library's constructor does not take."""
    try:
        yield
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise TrainingError(
            f"{given} does not suit {of}: {words.rstrip('.')}.",
            hint=f"Correct or remove {given.partition(' =')[0]}.",
            code="optimizer",
        ) from error
