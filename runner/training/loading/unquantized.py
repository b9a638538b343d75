"""What of a quantized model stays in floating point, by name.

Both stacks quantize linear layers only. Embeddings, the output layer, norms and biases stay as they are on purpose.
Subclasses of Linear (on transformers 5) and fused experts, one 3-D parameter for all of a layer, escape.
Source: `replace_with_bnb_linear` in transformers 4.57.2 and 5.23.0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn
from transformers import PreTrainedModel

from runner.reports import UnquantizedPart

_Kind = Literal["embeddings", "output layer", "norms and biases", "escaped"]


def list_unquantized(model: PreTrainedModel) -> tuple[UnquantizedPart, ...]:
    """Group whatever a quantized model holds in floating point, largest first.

    Layers are one group: `model.layers.*.mlp.experts.gate_up_proj`.
    """
    tensors: Counter[tuple[_Kind, str]] = Counter()
    parameters: Counter[tuple[_Kind, str]] = Counter()
    for name, parameter, module in _plain_parameters(model):
        kind = _kind(model, parameter, module)
        key = kind, kind if kind == "norms and biases" else re.sub(r"\.\d+(?=\.|$)", ".*", name)
        tensors[key] += 1
        parameters[key] += parameter.numel()
    return tuple(
        UnquantizedPart(name=name, kind=kind, tensors=tensors[kind, name], parameters=count)
        for (kind, name), count in parameters.most_common()
    )


def _plain_parameters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, nn.Module]]:
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, Params4bit | Int8Params):
            yield name, parameter, model.get_submodule(name.rpartition(".")[0])


def _kind(model: PreTrainedModel, parameter: Tensor, module: nn.Module) -> _Kind:
    if isinstance(module, nn.Embedding) or module is model.get_input_embeddings():
        return "embeddings"
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers leaves it bare
    if module is head:
        return "output layer"
    if parameter.ndim <= 1 or isinstance(module, Linear4bit | Linear8bitLt):
        return "norms and biases"
    return "escaped"
