"""How a rung is asked of transformers, and how a base model's files are quantized already."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig

from runner.hyperparameters import Quantization
from runner.reports import Rung
from runner.training.loading.quantized import EffectiveRungError


def ask_for_rung(
    rung: Rung, config: PretrainedConfig, settings: Quantization, compute_dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Say what `from_pretrained` has to be given for a rung.

    Returns:
        None where nothing may be given: the rung is unquantized, or the files are already quantized so.

    Raises:
        EffectiveRungError: They are quantized in another way, which no argument can change.
    """
    stored = stored_quantization(config)
    if stored is not None:
        method, stored_rung = stored
        if stored_rung != rung:
            raise EffectiveRungError(f"the base model's files are already quantized ({method})")
        return None
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
    method = str(values.get("quant_method", "bitsandbytes"))
    if values.get("load_in_4bit"):
        return f"{method}, 4-bit", "4bit"
    if values.get("load_in_8bit"):
        return f"{method}, 8-bit", "8bit"
    # Another library's format: to bitsandbytes this is an unquantized model.
    return method, "none"


def stored_values(config: PretrainedConfig) -> dict[str, Any] | None:
    """The `quantization_config` of the model's own config.json, None where there is none."""
    stored = getattr(config, "quantization_config", None)
    if stored is None or isinstance(stored, dict):
        return stored
    values: dict[str, Any] = stored.to_dict()
    return values
