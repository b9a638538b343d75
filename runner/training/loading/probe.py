"""The probe: a tiny forward and backward pass that tells whether a loaded model can be trained at all.

Much of what a quantized weight breaks shows at the first forward pass, not while loading.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

PROBE_TOKENS = 8


class ProbeError(Exception):
    """The passes ran, but what came out cannot be trained with."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the probe saw."""

    loss: float
    """Cross entropy of the probe's tokens, in nats."""
    grad_norm: float
    """Gradient norm of the loss at the embedding output."""


def probe(model: PreTrainedModel, compute_dtype: torch.dtype) -> ProbeResult:
    """Run one forward and backward pass in training mode; leaves no gradient, hook, random draw or mode behind.

    Args:
        model: Loaded and prepared, on one device.
        compute_dtype: Of the autocast that training will run under.

    Raises:
        ProbeError: Loss or gradient is not finite, or no gradient reaches the embeddings.
        Exception: Whatever the model's own code raises.
    """
    device = model.device
    vocabulary = int(model.config.get_text_config().vocab_size)
    # Spread over the vocabulary: neighbours at its start are often special tokens.
    tokens = torch.linspace(0, vocabulary - 1, PROBE_TOKENS, device=device).long().unsqueeze(0)
    with differentiable_embeddings(model) as embedded:
        with torch.autocast(device.type, dtype=compute_dtype, enabled=compute_dtype != torch.float32):
            output = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=tokens, use_cache=False)
        (gradient,) = torch.autograd.grad(output.loss, embedded[0])
    result = ProbeResult(loss=output.loss.item(), grad_norm=gradient.float().norm().item())
    if not math.isfinite(result.loss):
        raise ProbeError(f"the probe's loss is {result.loss}")
    if not (math.isfinite(result.grad_norm) and result.grad_norm > 0):
        raise ProbeError(f"the gradient norm at the embeddings is {result.grad_norm}")
    return result


@contextmanager
def differentiable_embeddings(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Inside the block passes run as in training; the list gets what each has embedded, to differentiate by.

    Leaves no hook, random draw or mode behind.

    Raises:
        ProbeError: The model has no input embeddings.
    """
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Module):
        raise ProbeError("the model has no input embeddings")
    embedded: list[Tensor] = []

    def mark(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        # The weights are frozen, so without this there would be nothing to differentiate by.
        output.requires_grad_(True)
        embedded.append(output)
        return output

    device = model.device
    hook = embeddings.register_forward_hook(mark)
    try:
        with _training_mode(model), _quiet_cast(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield embedded
    finally:
        hook.remove()


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _quiet_cast() -> Iterator[None]:
    """Silence bitsandbytes 0.49, which warns that an 8-bit module works in float16 inside; so it is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast", category=UserWarning)
        yield
