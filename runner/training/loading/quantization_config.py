"""How a rung is asked of transformers, and how a base model's files are quantized already."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
import transformers
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from runner.errors import ConfigError
from runner.hyperparameters import Quantization
from runner.reports import Rung
from runner.training.loading.quantized import EffectiveRungError

DEQUANTIZED = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Formats that transformers turns back into floating point while it loads, where the class named here can ask for it.
Unasked, it computes with them as they are on a GPU that can, and such weights pass no gradient on."""


def ask_for_rung(
    rung: Rung, config: PretrainedConfig, settings: Quantization, compute_dtype: torch.dtype
) -> QuantizationConfigMixin | None:
    """Say what `from_pretrained` has to be given for a rung.

    Returns:
        None where nothing may be given: the rung is unquantized, or the files are already quantized so. For files of
        another library's format, what turns them into floating point.

    Raises:
        EffectiveRungError: They are quantized in another way, which no argument can change.
    """
    stored = stored_quantization(config)
    if stored is not None:
        method, stored_rung = stored
        if stored_rung != rung:
            raise EffectiveRungError(f"the base model's files are already quantized ({method})")
        return _dequantizing(config)
    options: dict[str, Any]
    match rung:
        case "none":
            return None
        case "4bit":
            options = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": settings.bnb_4bit_quant_type,
                "bnb_4bit_use_double_quant": settings.bnb_4bit_use_double_quant,
                "bnb_4bit_compute_dtype": compute_dtype,
            }
        case "8bit":
            options = {"load_in_8bit": True, "llm_int8_threshold": settings.llm_int8_threshold}
    return BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]  # left bare


def refuse_foreign_format(config: PretrainedConfig, name: str) -> None:
    """Refuse files that are quantized in a format which nobody can train on here.

    Args:
        config: Of the base model.
        name: The base model, as the project names it.

    Raises:
        ConfigError: They are (`base-quantized`).
    """
    stored = stored_quantization(config)
    if stored is None or stored[1] != "none" or _dequantizing(config) is not None:
        return
    raise ConfigError(
        f"The files of the base model {name!r} are quantized ({stored[0]}) in a way that transformers "
        f"{transformers.__version__} cannot train on.",
        hint="Name the unquantized model that they were made from as base_model; it is quantized while it loads. Of "
        "quantized files, those that bitsandbytes wrote can be trained on.",
        code="base-quantized",
    )


def _dequantizing(config: PretrainedConfig) -> QuantizationConfigMixin | None:
    """What makes transformers turn files of another library's format into floating point, None where nothing does."""
    values = stored_values(config) or {}
    kind: Any = getattr(transformers, DEQUANTIZED.get(str(values.get("quant_method")), ""), None)
    # 4.57 reads FP8 files, but only as they are.
    if kind is None or "dequantize" not in signature(kind.__init__).parameters:
        return None
    asked: QuantizationConfigMixin = kind.from_dict({**values, "dequantize": True})
    return asked


def unquantized_dtype(rung: Rung, compute_dtype: torch.dtype) -> torch.dtype:
    """What a rung holds norms, embeddings, output layer and whatever else it does not quantize in.

    Float16 ends at 65504, so in a quantized model they go to float32, as in peft's preparation. In bfloat16 they stay
    as they are, as TRL leaves them: float32 would double the activations for nothing.
    """
    return torch.float32 if rung != "none" and compute_dtype == torch.float16 else compute_dtype


def stored_quantization(config: PretrainedConfig) -> tuple[str, Rung] | None:
    """How the files are quantized, and on which rung such a model can be loaded."""
    values = stored_values(config)
    if values is None:
        return None
    method = str(values.get("quant_method") or "by what, config.json does not say")
    # What bitsandbytes wrote at first names no method.
    if values.get("load_in_4bit"):
        return "bitsandbytes, 4-bit", "4bit"
    if values.get("load_in_8bit"):
        return "bitsandbytes, 8-bit", "8bit"
    # Another library's format: at best it can be turned into floating point.
    return method, "none"


def stored_values(config: PretrainedConfig) -> dict[str, Any] | None:
    """The `quantization_config` of the model's own config.json, None where there is none."""
    stored = getattr(config, "quantization_config", None)
    if stored is None or isinstance(stored, dict):
        return stored
    values: dict[str, Any] = stored.to_dict()
    return values
