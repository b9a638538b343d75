"""Loads a base model on one rung: quantized as asked, counted, prepared for training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from peft import prepare_model_for_kbit_training
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from runner.errors import ConfigError, ModelFilesError
from runner.reports import Rung
from runner.spec import ProjectSpec
from runner.training.base_model import BaseModel
from runner.training.config_guard import ConfigGuard
from runner.training.noise import without_bars
from runner.training.quantized import EffectiveRungError, keep_training_layout, measure_quantization


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
        if _stored_quantization(self.config) is not None:
            return elements
        # Another guard, so that what a hook does to this empty model is not counted as done to the real one.
        with ConfigGuard(choose_model_class(self.config, self.source)), torch.device("meta"):
            empty: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # left bare
                copy.deepcopy(self.config), trust_remote_code=False
            )
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
            Exception: Whatever transformers, bitsandbytes or the model's own code raises.
        """
        with without_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.source.folder,
                config=self.config,
                dtype=self.compute_dtype,
                device_map={"": self.device},
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **self._quantization(rung),
            )
        model: PreTrainedModel = loaded[0]
        self._refuse_missing_weights(loaded[1]["missing_keys"], type(model).__name__)
        self.guard.cover(model)
        measure_quantization(model).check(rung)
        keep_training_layout(model)
        self._prepare(model, rung)
        return model

    def _prepare(self, model: PreTrainedModel, rung: Rung) -> None:
        """Freeze, and bring what stays unquantized to a precision that training bears."""
        if rung == "none":
            # peft's preparation would turn the whole model into float32.
            model.requires_grad_(requires_grad=False)
        else:
            prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]  # peft leaves it bare
                model, use_gradient_checkpointing=False
            )
        if self.project.training.gradient_checkpointing:
            # transformers 5.23 has a new name for it and warns at the old one, which older versions have only.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            # Reentrant checkpointing loses the gradient where the inputs need none, as above a frozen embedding.
            enable({"use_reentrant": False})

    def _quantization(self, rung: Rung) -> dict[str, Any]:
        """Arguments of `from_pretrained` for a rung; none where the files themselves are already quantized so.

        Raises:
            EffectiveRungError: They are quantized in another way, which no argument can change.
        """
        stored = _stored_quantization(self.config)
        if stored is not None:
            method, stored_rung = stored
            if stored_rung != rung:
                raise EffectiveRungError(f"the base model's files are already quantized ({method})")
            return {}
        settings = self.project.quantization
        options: dict[str, Any]
        match rung:
            case "none":
                return {}
            case "4bit":
                options = {
                    "load_in_4bit": True,
                    "bnb_4bit_quant_type": settings.bnb_4bit_quant_type,
                    "bnb_4bit_use_double_quant": settings.bnb_4bit_use_double_quant,
                    "bnb_4bit_compute_dtype": self.compute_dtype,
                }
            case "8bit":
                options = {"load_in_8bit": True, "llm_int8_threshold": settings.llm_int8_threshold}
        return {"quantization_config": BitsAndBytesConfig(**options)}  # type: ignore[no-untyped-call]  # left bare

    def _refuse_missing_weights(self, missing_keys: Iterable[str], model_class: str) -> None:
        """Refuse what transformers would fill with random numbers, telling its log only."""
        missing = sorted(missing_keys)
        if missing:
            raise ModelFilesError(
                f"The files of {self.source.name!r} lack {len(missing)} of the weights that {model_class} needs, such "
                f"as {missing[0]}.",
                hint="Fetch the model's files again, or correct architectures in its config.json.",
            )


def choose_model_class(config: PretrainedConfig, source: BaseModel) -> type[PreTrainedModel]:
    """Name the class that AutoModelForCausalLM will build, so that it can be guarded before it does.

    Raises:
        ConfigError: The model type generates no text.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"The base model {source.name!r} is of model type {config.model_type!r}, which generates no text.",
            hint="Choose a causal language model as base_model.",
        )
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    candidates: list[type[PreTrainedModel]] = list(known) if isinstance(known, list | tuple) else [known]
    named = [candidate for candidate in candidates if candidate.__name__ in (config.architectures or [])]
    return (named or candidates)[0]


def _stored_quantization(config: PretrainedConfig) -> tuple[str, Rung] | None:
    """How the files are quantized, and on which rung such a model can be loaded."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    values = stored if isinstance(stored, dict) else stored.to_dict()
    method = str(values.get("quant_method", "bitsandbytes"))
    if values.get("load_in_4bit"):
        return f"{method}, 4-bit", "4bit"
    if values.get("load_in_8bit"):
        return f"{method}, 8-bit", "8bit"
    # Another library's format: to bitsandbytes this is an unquantized model.
    return method, "none"
