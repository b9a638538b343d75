"""Shows the two causes of `'dict' object has no attribute 'model_type'`, and that each is cured here.

`python -m tests.training.dict_issue tokenizer | config`; told in docs/MODEL_LOADING_DICT_ISSUE.md. Exit status 0 when
the libraries fail as described, or are known to be cured, and this project does not fail.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from runner.training.loading.base_model import BaseModel
from runner.training.loading.config_guard import ConfigGuard
from runner.training.loading.tokenizer import DEFECTIVE_TRANSFORMERS, load_tokenizer

MESSAGE = "'dict' object has no attribute 'model_type'"


def write_large_tokenizer(folder: Path) -> None:
    """A folder as the defect needs it: over 100 000 entries, words split, a config.json of 4.57.2 or older."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"word{number}": number + 3 for number in range(100_010)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = {"model_type": "llama", "transformers_version": "4.57.0"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def show_tokenizer() -> bool:
    """Cause 1."""
    with tempfile.TemporaryDirectory() as name:
        write_large_tokenizer(Path(name))
        try:
            AutoTokenizer.from_pretrained(name)
            failed = False
            say(f"transformers {transformers.__version__} alone: loads the tokenizer")
        except AttributeError as error:
            failed = str(error) == MESSAGE
            say(f"transformers {transformers.__version__} alone: AttributeError: {error}")
        loaded = load_tokenizer(BaseModel("large", Path(name), None))
    say(f"this project: loads {len(loaded.tokenizer)} entries; {loaded.event.workaround or 'no workaround needed'}")
    return failed is (transformers.__version__ == DEFECTIVE_TRANSFORMERS)


def train_one_step() -> None:
    """Wrap a small model as QLoRA does, after something has made a dict of its config."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model: Any = LlamaForCausalLM(config)
    model.config = model.config.to_dict()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    tokens = torch.tensor([[1, 5, 9, 2]])
    wrapped(input_ids=tokens, labels=tokens).loss.backward()


def show_config() -> bool:
    """Cause 2."""
    failed = False
    try:
        train_one_step()
        say("without the guard: trains")
    except AttributeError as error:
        failed = str(error) == MESSAGE
        say(f"without the guard: AttributeError: {error}")
    with ConfigGuard() as guard:
        train_one_step()
    say(f"with the guard: trains; turned away {guard.interceptions} dict, assigned at {guard.origins[0]}")
    return failed and guard.interceptions == 1


def say(line: str) -> None:
    """Tell the reader."""
    print(line)  # noqa: T201 - a demonstration prints


if __name__ == "__main__":
    SHOWN = {"tokenizer": show_tokenizer, "config": show_config}
    if len(sys.argv) != 2 or sys.argv[1] not in SHOWN:
        sys.exit("usage: python -m tests.training.dict_issue tokenizer | config")
    sys.exit(0 if SHOWN[sys.argv[1]]() else 1)
