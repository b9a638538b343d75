"""Loads a model's folder as anybody does, with transformers alone, and writes its logits: the reader of a merged model.

`python -m runner.training.outcome.plain_logits FOLDER INPUT OUTPUT`: `input_ids` (rows, tokens) int64 in one
safetensors file, `logits` (rows, positions, vocabulary) float32 in the other. On the CPU: a GPU may still hold another
model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from runner.training.outcome.verify import probe_logits


def main(arguments: list[str]) -> int:
    """Load, answer, write."""
    folder, asked, answered = map(Path, arguments)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    save_file({"logits": probe_logits(model, load_file(asked)["input_ids"])}, answered)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
