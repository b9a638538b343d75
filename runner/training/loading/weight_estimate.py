"""What a base model's weights will take in memory on a rung, known from config.json before a tensor is read.

transformers itself replaces the modules of an empty model, so what it would leave unquantized (the output layer,
subclasses of Linear, fused experts) is counted as that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from bitsandbytes.nn.modules import Int8Params, Params4bit
from torch import Tensor
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer

from runner.hyperparameters import Quantization
from runner.reports import Rung
from runner.training.loading.base_model import BaseModel
from runner.training.loading.empty_model import build_empty_model
from runner.training.loading.quantization_config import ask_for_rung, stored_values, unquantized_dtype

# Source: QuantState of bitsandbytes 0.49 to 0.50.2: constants in blocks of 256, two tables, one offset.
_NESTED_BLOCK = 256
_CODE_BYTES = 16 * 4
_NESTED_BYTES = 256 * 4 + 4
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class WeightEstimate:
    """The weights of a base model on one rung, before they are loaded."""

    rung: Rung
    total_parameters: int
    """Logical parameters; a tied one counts once."""
    quantized_parameters: int
    """Of these, held in 4 or 8 bits."""
    model_bytes: int
    """Bytes once loaded and prepared for training, as the load receipt counts them; adapter, optimizer and activations
    come on top."""
    load_peak_bytes: int
    """Bytes at the worst moment of loading: the largest tensor is held a second time while it is converted."""


def estimate_weights(
    source: BaseModel, config: PretrainedConfig, rung: Rung, settings: Quantization, compute_dtype: torch.dtype
) -> WeightEstimate:
    """Estimate a rung from the configuration alone; the weight files need not be on this host.

    Files in another library's format count as what they are turned into while they load: floating point.

    Args:
        source: The base model; only its config.json needs to be here.
        config: Of the base model, already an object; not changed.
        rung: To estimate.
        settings: The project's `[quantization]`.
        compute_dtype: What the unquantized rung holds its weights in.

    Raises:
        ConfigError: The model type generates no text.
        EffectiveRungError: The files are quantized in another way than the rung.
    """
    asked = ask_for_rung(rung, config, settings, compute_dtype)
    model: Any = build_empty_model(config, source)
    values = stored_values(config)
    if values is not None and rung != "none":
        asked = BitsAndBytesConfig.from_dict(dict(values))  # type: ignore[no-untyped-call]  # left bare
    if isinstance(asked, BitsAndBytesConfig):
        quantizer = AutoHfQuantizer.from_config(asked, pre_quantized=False)
        quantizer.preprocess_model(model=model, device_map={"": "cpu"}, config=model.config)
    parameters = list(model.parameters())
    plain_dtype = unquantized_dtype(rung, compute_dtype)
    model_bytes = sum(_held_bytes(parameter, plain_dtype) for parameter in parameters)
    model_bytes += sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    return WeightEstimate(
        rung=rung,
        total_parameters=sum(parameter.numel() for parameter in parameters),
        quantized_parameters=sum(parameter.numel() for parameter in parameters if _is_quantized(parameter)),
        model_bytes=model_bytes,
        load_peak_bytes=model_bytes + max(parameter.numel() for parameter in parameters) * compute_dtype.itemsize,
    )


def _is_quantized(parameter: Tensor) -> bool:
    return isinstance(parameter, Params4bit | Int8Params)


def _held_bytes(parameter: Tensor, plain_dtype: torch.dtype) -> int:
    """Bytes of one parameter of a model whose modules are replaced and whose weights are not loaded."""
    elements = parameter.numel()
    if isinstance(parameter, Params4bit):
        blocks: int = ceil(elements / parameter.blocksize)
        constants = _FLOAT_BYTES * blocks
        if parameter.compress_statistics:
            constants = blocks + _FLOAT_BYTES * ceil(blocks / _NESTED_BLOCK) + _NESTED_BYTES
        return ceil(elements / 2) + constants + _CODE_BYTES
    if isinstance(parameter, Int8Params):
        return elements + _FLOAT_BYTES * len(parameter)
    return elements * (plain_dtype.itemsize if parameter.is_floating_point() else parameter.element_size())
