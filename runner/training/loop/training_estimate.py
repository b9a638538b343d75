"""What a training takes in memory beside the base model's weights, by arithmetic, before anything is loaded."""

from __future__ import annotations

import copy
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from runner.hyperparameters import Training
from runner.reports import Rung
from runner.spec import ProjectSpec
from runner.training.data.mix import IGNORED_LABEL, Mix
from runner.training.loading.base_model import BaseModel
from runner.training.loading.empty_model import build_empty_model
from runner.training.loading.quantization_config import unquantized_dtype
from runner.training.loop.lean_lora import make_lora_lean
from runner.training.loop.lora import add_lora
from runner.training.loop.loss import add_loss_only_forward
from runner.training.loop.step_memory import BatchShape, step_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

_FLOAT_BYTES = 4
_OPTIMIZER_BYTES = {
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion_8bit": 1,
    "paged_lion_8bit": 1,
    "lion_32bit": 4,
    "paged_lion_32bit": 4,
    "ademamix": 12,
    "paged_ademamix_32bit": 12,
    "ademamix_8bit": 3,
    "paged_ademamix_8bit": 3,
    "rmsprop": 4,
    "rmsprop_bnb": 4,
    "rmsprop_bnb_8bit": 1,
    "rmsprop_bnb_32bit": 4,
    "adagrad": 4,
    "adafactor": 0,
    "sgd": 0,
}
"""Bytes of optimizer state for each trained parameter; the others keep two moments in float32."""
_SMALL = {
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "pad_token_id": None,
}


class TrainingEstimate:
    """What a training holds beside the base model's weights on one process, for one rung or batch after another.

    Args:
        source: The base model; only its small files need to be here.
        config: Of the base model.
        project: Its `[lora]` and `[training]`, with an optimizer that is chosen.
        mix: The rows.
        compute_dtype: Of the activations.
        device: Where the run will be.
    """

    def __init__(
        self,
        source: BaseModel,
        config: PretrainedConfig,
        project: ProjectSpec,
        mix: Mix,
        *,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._source = source
        self._config = config
        self._project = project
        self._mix = mix
        self._compute_dtype = compute_dtype
        self._device = device
        self._steps: dict[tuple[Any, ...], int] = {}

    def bytes_of(self, rung: Rung, training: Training | None = None) -> int | None:
        """Bytes of adapter, gradients, optimizer state and of what one batch of the longest rows makes.

        Args:
            rung: Of the base model.
            training: Another `[training]` than the project's, such as one with smaller batches.

        Returns:
            None where the model's own code does not run without data: it may ask for numbers that only real tensors
            hold, as a mixture of experts in transformers 4.57 does, or divide by a size that is too small here.

        Raises:
            ConfigError: The model type generates no text.
            TargetModulesError: The adapter names what the base model does not have.
        """
        training = training or self._project.training
        model: Any = add_lora(build_empty_model(self._config, self._source), self._project.lora, training.seed)
        trained: int = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        unpacked = 0 if rung == "none" else _largest_quantized(model) * self._compute_dtype.itemsize
        state = _OPTIMIZER_BYTES.get(training.optim, 2 * _FLOAT_BYTES)
        # Several processes average their gradients in buckets, which hold all of them a second time.
        shared = _FLOAT_BYTES if self._project.compute.gpus > 1 else 0
        try:
            step = self._step(model, rung, training)
        except Exception as error:  # noqa: BLE001  # any model's own code; a run must not end by an estimate of it
            logger.warning("No estimate of a step: %s does not run without data: %r", self._config.model_type, error)
            return None
        return trained * (_FLOAT_BYTES + state + shared) + unpacked + step

    def _step(self, model: Any, rung: Rung, training: Training) -> int:
        lean, frozen_dtype = rung != "8bit", unquantized_dtype(rung, self._compute_dtype)
        batch, checkpointing = longest_batch(training, self._mix), training.gradient_checkpointing
        key = (lean, frozen_dtype, batch, checkpointing)
        if key not in self._steps:
            model.train()
            if lean:
                make_lora_lean(model)
            if checkpointing:
                name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
                getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
                model.enable_input_require_grads()
            self._steps[key] = step_bytes(
                model,
                batch,
                device=self._device,
                frozen_dtype=frozen_dtype,
                compute_dtype=self._compute_dtype,
                makes_logits=not self._has_lean_loss,
                accumulates=training.gradient_accumulation_steps > 1,
                label_smoothing=training.label_smoothing_factor,
            )
        return self._steps[key]

    @cached_property
    def _has_lean_loss(self) -> bool:
        """Ask a small model of the same architecture, with numbers in it, whether a rule explains its logits."""
        small = copy.deepcopy(self._config)
        for part in (small, small.get_text_config(), getattr(small, "vision_config", None)):
            for name, value in _SMALL.items():
                if hasattr(part, name) and not _computes(part, name):
                    setattr(part, name, value)
            # Some work them out from the number of layers.
            if getattr(part, "layer_types", None) and not _computes(part, "layer_types"):
                part.layer_types = part.layer_types[:1]  # type: ignore[union-attr]  # None has no such attribute
        if self._project.training.loss_type != "nll":
            return False
        return add_loss_only_forward(AutoModelForCausalLM.from_config(small))  # type: ignore[no-untyped-call]


def _computes(config: Any, name: str) -> bool:
    """Whether a configuration works a value out instead of storing it; transformers 5 has other names for some."""
    own = config.attribute_map.get(name, name)
    return isinstance(getattr(type(config), own, None), property)


def longest_batch(training: Training, mix: Mix) -> BatchShape:
    """The batch that takes most: the longest rows of the mix at once. Pure."""
    rows = training.per_device_train_batch_size
    if training.packing:
        tokens = training.max_length
        return BatchShape(rows, tokens, trained_tokens=rows * tokens, packed=True)
    lengths = [min(len(row), training.max_length) for row in mix.input_ids]
    longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])[:rows]
    with_loss = sum(label != IGNORED_LABEL for row in longest for label in mix.labels[row][1 : training.max_length])
    return BatchShape(len(longest), lengths[longest[0]], trained_tokens=with_loss)


def _largest_quantized(model: Any) -> int:
    """Elements of the largest weight that a quantized product unpacks."""
    head = model.get_output_embeddings()
    largest: int = max(
        (module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear) and module is not head),
        default=0,
    )
    return largest
