"""Base models in the shapes of real Llamas with random weights, written shard by shard: no hub, little host memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from runner.training.demo_model import build_demo_model

SEED = 42
INITIALIZER_RANGE = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a config.json that decide what a step costs."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool


SHAPES = {
    "tiny": Shape(2048, 256, 512, 2, 4, 2, 64, tie_word_embeddings=True),
    # Source: config.json of meta-llama/Llama-3.2-3B and meta-llama/Llama-3.1-8B. Their stretched rotary frequencies
    # cost nothing and are left out.
    "llama-3.2-3b": Shape(128256, 3072, 8192, 28, 24, 8, 128, tie_word_embeddings=True),
    "llama-3.1-8b": Shape(128256, 4096, 14336, 32, 32, 8, 128, tie_word_embeddings=False),
}


def write_model(shape: Shape, folder: Path, device: torch.device) -> None:
    """Write config.json, bfloat16 weights and the demo's tokenizer, whose 512 tokens are the first of the vocabulary.

    Args:
        shape: Of the model.
        folder: Made by this.
        device: Draws the numbers; one shard, at most two gigabytes, lies on it at a time.

    Raises:
        OSError: The disk has no room for the weights.
    """
    needed = 2 * sum(rows * columns for shard in _shards(shape) for rows, columns in shard.values())
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise OSError(
            f"The weights take {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in {folder.parent}: "
            "name another folder with --scratch."
        )
    build_demo_model(folder)  # for its tokenizer: the other files are written over
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {name: getattr(shape, name) for name in Shape.__dataclass_fields__}
    config |= {"max_position_embeddings": 8192, "rope_theta": 500_000.0}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generator = torch.Generator(device).manual_seed(SEED)
    shards = list(_shards(shape))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weights = {name: _draw(size, generator) for name, size in shard.items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(weights, file)
    index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _draw(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw a matrix, or give the ones of a norm, which has a single row."""
    rows, columns = size
    if rows == 1:
        return torch.ones(columns, dtype=torch.bfloat16)
    weight = torch.empty(rows, columns, dtype=torch.bfloat16, device=generator.device)
    return weight.normal_(0, INITIALIZER_RANGE, generator=generator).cpu()


def _shards(shape: Shape) -> Iterator[dict[str, tuple[int, int]]]:
    """Names and sizes of the weights of each file: one for each layer, one for each of the two embeddings."""
    width, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    yield {"model.embed_tokens.weight": (shape.vocab_size, width)}
    for layer in range(shape.num_hidden_layers):
        sizes = {
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (1, width),
            "post_attention_layernorm": (1, width),
        }
        yield {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
    last = {"model.norm.weight": (1, width)}
    yield last if shape.tie_word_embeddings else last | {"lm_head.weight": (shape.vocab_size, width)}
