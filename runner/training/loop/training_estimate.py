"""What a training takes in memory beside the base model's weights, by arithmetic, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from runner.spec import ProjectSpec
from runner.training.data.mix import Mix
from runner.training.loop.loss import BLOCK_LOGITS, MIN_BLOCK_ROWS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FLOAT_BYTES = 4
_OPTIMIZER_BYTES = {
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "lion_8bit": 1,
    "paged_lion_8bit": 1,
    "lion_32bit": 4,
    "ademamix": 12,
    "ademamix_8bit": 3,
    "paged_ademamix_8bit": 3,
    "rmsprop": 4,
    "adagrad": 4,
    "adafactor": 0,
    "sgd": 0,
}
"""Bytes of optimizer state for each trained parameter; the others keep two moments in float32."""


def estimate_training(
    config: PretrainedConfig, project: ProjectSpec, mix: Mix, trainable_parameters: int, compute_dtype: torch.dtype
) -> int:
    """Bytes of adapter, gradients, optimizer state and the activations of one batch of the longest rows.

    The shapes are those of a decoder with gated feed-forward layers, as nearly all models of today are; for another
    kind the result is of the right size, no more.

    Args:
        config: Of the base model.
        project: Its `[training]` says how many rows go through at once.
        mix: The rows.
        trainable_parameters: Of the adapter, `modules_to_save` included.
        compute_dtype: Of the activations.
    """
    training = project.training
    longest = training.max_length if training.packing else max(map(len, mix.input_ids))
    tokens = training.per_device_train_batch_size * longest
    state = _OPTIMIZER_BYTES.get(training.optim, 2 * _FLOAT_BYTES)
    adapter = trainable_parameters * (2 * _FLOAT_BYTES + state)
    text: Any = config.get_text_config()
    layer = _layer_bytes(text, compute_dtype)
    layers = int(text.num_hidden_layers)
    if training.gradient_checkpointing:
        kept = layers * int(text.hidden_size) * compute_dtype.itemsize + layer
    else:
        kept = layers * layer
    # The loss leaves the gradient of every position's hidden state behind. Of logits it holds a block at a time: in the
    # precision of the model and in float32, each with its gradient, and one more while the gradient is made.
    kept += int(text.hidden_size) * (compute_dtype.itemsize + _FLOAT_BYTES)
    vocabulary = int(text.vocab_size)
    block = min(tokens, max(MIN_BLOCK_ROWS, BLOCK_LOGITS // vocabulary))
    logits = block * vocabulary * (2 * compute_dtype.itemsize + 3 * _FLOAT_BYTES)
    return adapter + tokens * kept + logits


def _layer_bytes(text: Any, compute_dtype: torch.dtype) -> int:
    """Bytes of one token's activations in one layer that the backward pass needs."""
    hidden = int(text.hidden_size)
    heads = int(text.num_attention_heads)
    head_width = int(getattr(text, "head_dim", None) or hidden // heads)
    keys = int(getattr(text, "num_key_value_heads", None) or heads) * head_width
    wide = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    # Both norms keep their input in float32 and their output; attention its queries, keys, values and result; the
    # feed-forward part its gate, its activation, both factors' product; every adapter the input of its layer.
    return (
        2 * hidden * _FLOAT_BYTES + (8 * hidden + 2 * heads * head_width + 2 * keys + 5 * wide) * compute_dtype.itemsize
    )
