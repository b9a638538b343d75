"""The demo's base model: a tiny Llama that knows nothing, made from a seed.

The weights and the tokenizer are written directly, without a model class, so the folder comes out the same under every
supported version of transformers and building it takes about a second. `python -m runner.training.demo_model FOLDER`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from torch import Tensor

SEED = 1
VOCAB_SIZE = 512
HIDDEN_SIZE = 256  # NF4 packs blocks of 64 along the input width.
INTERMEDIATE_SIZE = 512
NUM_LAYERS = 4
NUM_HEADS = 4
SPECIAL_TOKENS = ("<|pad|>", "<|begin|>", "<|end|>")

# What the byte-pair merges are learned from. Any other text works too: every byte has a token of its own.
_MERGE_TEXT = """
What is the sum? The answer is right. What is this and what is that? Who are you, and who made you?
How do I start a job? How do I stop a job? Where is the adapter, and where is the thread of the job?
The team trains a model on its own host. The model answers with a number or with one short sentence.
Please say it again. Thank you, that is all. Hello! Good morning, what can I do for you today?
"""


def build_demo_model(folder: Path) -> None:
    """Write the base model into `folder`, unless it is already complete.

    The folder appears in one rename, so nobody ever sees half a model.

    Args:
        folder: Where config.json, model.safetensors and the tokenizer's two files go; parents are created.

    Raises:
        FileExistsError: `folder` is there but is no complete demo model, so it may be somebody's work.
    """
    if _is_complete(folder):
        return
    if folder.exists():
        raise FileExistsError(f"{folder} exists but holds no complete demo model; remove it or choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_tokenizer(scratch)
        (scratch / "config.json").write_text(json.dumps(_config(), indent=2) + "\n", encoding="utf-8")
        save_file(_weights(), scratch / "model.safetensors", metadata={"format": "pt"})
        try:
            scratch.rename(folder)
        except OSError:
            # Two builders at once: both made the same model, and the first rename wins.
            if not _is_complete(folder):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    return all((folder / name).is_file() for name in names)


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)

    def random(rows: int, columns: int, std: float) -> Tensor:
        return (torch.randn(rows, columns, generator=generator) * std).to(torch.bfloat16)

    def ones() -> Tensor:
        return torch.ones(HIDDEN_SIZE, dtype=torch.bfloat16)

    weights = {"model.embed_tokens.weight": random(VOCAB_SIZE, HIDDEN_SIZE, 1.0)}
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{prefix}.self_attn.{name}.weight"] = random(HIDDEN_SIZE, HIDDEN_SIZE, HIDDEN_SIZE**-0.5)
        for name in ("gate_proj", "up_proj"):
            weights[f"{prefix}.mlp.{name}.weight"] = random(INTERMEDIATE_SIZE, HIDDEN_SIZE, HIDDEN_SIZE**-0.5)
        weights[f"{prefix}.mlp.down_proj.weight"] = random(HIDDEN_SIZE, INTERMEDIATE_SIZE, INTERMEDIATE_SIZE**-0.5)
        weights[f"{prefix}.input_layernorm.weight"] = ones()
        weights[f"{prefix}.post_attention_layernorm.weight"] = ones()
    weights["model.norm.weight"] = ones()
    weights["lm_head.weight"] = random(VOCAB_SIZE, HIDDEN_SIZE, HIDDEN_SIZE**-0.5)
    return weights


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one, so that numbers never seen in the merge text are made of familiar tokens.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_MERGE_TEXT.strip().splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    pad, begin, end = SPECIAL_TOKENS
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": begin,
        "eos_token": end,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Build the model in the folder named on the command line."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m runner.training.demo_model FOLDER\n")
        return 2
    build_demo_model(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
