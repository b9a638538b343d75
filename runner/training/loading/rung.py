"""Loads a base model on one rung: quantized as asked, counted, prepared for training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from runner.errors import ModelFilesError, TrainingError
from runner.reports import Rung
from runner.spec import ProjectSpec
from runner.training.loading.base_model import BaseModel
from runner.training.loading.config_guard import ConfigGuard
from runner.training.loading.conversion_errors import conversion_errors_raised
from runner.training.loading.empty_model import build_empty_model
from runner.training.loading.quantization_config import ask_for_rung, stored_quantization, unquantized_dtype
from runner.training.loading.quantized import compute_in, keep_training_layout, measure_quantization
from runner.training.noise import without_bars


def require_attention(asked: str | None) -> None:
    """Refuse an attention kernel that this host does not have.

    Args:
        asked: The project's `training.attn_implementation`.

    Raises:
        TrainingError: It needs what is not installed (`attention`).
    """
    if asked == "flash_attention_2" and not is_flash_attn_2_available():
        raise TrainingError(
            "training.attn_implementation = 'flash_attention_2' needs the package flash-attn and a GPU, which this "
            "host does not have.",
            hint="Use 'sdpa', or install flash-attn on the host.",
            code="attention",
        )


@dataclass(frozen=True, slots=True)
class RungLoader:
    """All that is the same for every rung."""

    project: ProjectSpec
    source: BaseModel
    config: PretrainedConfig
    """Never changed: transformers loads with a copy of its own."""
    guard: ConfigGuard
    """In place already."""
    device: torch.device
    compute_dtype: torch.dtype

    def check_weights(self) -> int:
        """Compare the weight files' headers with what the model class needs, before a tensor is read.

        Quantized loading does not notice a wrong shape, and 4.57 stumbles over a missing tensor in its own words.
        Files whose names the loader translates, or that are stored quantized, are left for it to judge.

        Returns:
            Elements stored.

        Raises:
            ModelFilesError: Files or tensors are missing, damaged, or of another shape than config.json says.
        """
        stored = self.source.read_weight_shapes()
        elements = sum(prod(shape) for shape in stored.values())
        if stored_quantization(self.config) is not None:
            return elements
        empty = build_empty_model(self.config, self.source)
        needed = empty.state_dict(keep_vars=True)
        if not stored.keys() <= needed.keys():
            return elements
        held = {id(needed[name]) for name in stored}
        # A tied weight is stored once, under any of its names.
        self._refuse_missing_weights(
            (name for name, tensor in needed.items() if id(tensor) not in held), type(empty).__name__
        )
        for name, shape in stored.items():
            if shape != tuple(needed[name].shape):
                raise ModelFilesError(
                    f"The weight {name} of {self.source.name!r} has shape {list(shape)}, but config.json asks for "
                    f"{list(needed[name].shape)}.",
                    hint="Fetch the model's files again: weights and config.json are not of the same model.",
                )
        return elements

    def load(self, rung: Rung) -> PreTrainedModel:
        """Load, count, and prepare as peft does.

        Returns:
            The model, frozen, whole on the device.

        Raises:
            EffectiveRungError: It is not quantized as the rung says.
            ModelFilesError: Weights are missing.
            TrainingError: The host lacks what `attn_implementation` needs (`attention`).
            Exception: Whatever transformers, bitsandbytes or the model's own code raises.
        """
        attention = self.project.training.attn_implementation
        require_attention(attention)
        with without_bars(), conversion_errors_raised():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.source.folder,
                config=self.config,
                dtype=self.compute_dtype,
                device_map={"": self.device},
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                attn_implementation=attention,
                **self._quantization(rung),
            )
        model: PreTrainedModel = loaded[0]
        self._refuse_missing_weights(loaded[1]["missing_keys"], type(model).__name__)
        self.guard.cover(model)
        measure_quantization(model).check(rung)
        keep_training_layout(model)
        compute_in(model, self.compute_dtype)
        self._prepare(model, rung)
        return model

    def _prepare(self, model: PreTrainedModel, rung: Rung) -> None:
        """Freeze, and bring what stays unquantized to a precision that training bears."""
        model.requires_grad_(requires_grad=False)
        if unquantized_dtype(rung, self.compute_dtype) != self.compute_dtype:
            prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]  # peft leaves it bare
                model, use_gradient_checkpointing=False
            )
        if self.project.training.gradient_checkpointing:
            # transformers 5.23 has a new name for it and warns at the old one, which older versions have only.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            # Reentrant checkpointing loses the gradient where the inputs need none, as above a frozen embedding.
            enable({"use_reentrant": False})

    def _quantization(self, rung: Rung) -> dict[str, Any]:
        """Arguments of `from_pretrained` for a rung.

        Raises:
            EffectiveRungError: The files are quantized in another way, which no argument can change.
        """
        asked = ask_for_rung(rung, self.config, self.project.quantization, self.compute_dtype)
        return {} if asked is None else {"quantization_config": asked}

    def _refuse_missing_weights(self, missing_keys: Iterable[str], model_class: str) -> None:
        """Refuse what transformers would fill with random numbers, telling its log only."""
        missing = sorted(missing_keys)
        if missing:
            raise ModelFilesError(
                f"The files of {self.source.name!r} lack {len(missing)} of the weights that {model_class} needs, such "
                f"as {missing[0]}.",
                hint="Fetch the model's files again, or correct architectures in its config.json.",
            )
