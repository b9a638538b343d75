"""A tokenizer that is saved on one stack loads on the other, with the same tokens and special tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from runner.training.outcome.adapter import load_everywhere

TEXT = "What is 3 + 4?<|end|> <|pad|>"
OF_BOTH = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "model_max_length": 1024}
# What `save_pretrained` writes of one and the same tokenizer, whose `<|pad|>` is special without being anything else.
WRITTEN: dict[str, dict[str, Any]] = {
    "transformers 5, a list": {
        "backend": "tokenizers",
        "extra_special_tokens": ["<|pad|>"],
        "is_local": True,
        "local_files_only": True,
        "tokenizer_class": "TokenizersBackend",
    },
    "transformers 5, by name": {
        "backend": "tokenizers",
        "image_token": "<|pad|>",
        "model_specific_special_tokens": {"image_token": "<|pad|>"},
        "tokenizer_class": "TokenizersBackend",
    },
    "transformers 4.57, a list": {
        "additional_special_tokens": ["<|pad|>"],
        "extra_special_tokens": {},
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
    "transformers 4.57, by name": {
        "extra_special_tokens": {"image_token": "<|pad|>"},
        "image_token": "<|pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    },
}


@pytest.mark.parametrize("written", WRITTEN)
def test_what_either_stack_writes_loads_on_this_one(tiny_model: Path, tmp_path: Path, written: str) -> None:
    base = AutoTokenizer.from_pretrained(tiny_model)
    shutil.copy(tiny_model / "tokenizer.json", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(OF_BOTH | WRITTEN[written]), encoding="utf-8")

    load_everywhere(path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert loaded(TEXT)["input_ids"] == base(TEXT)["input_ids"]
    assert set(loaded.all_special_tokens) == {"<|begin|>", "<|end|>", "<|pad|>"}


def test_what_this_stack_saves_names_nothing_that_the_other_lacks(tiny_model: Path, tmp_path: Path) -> None:
    saved = AutoTokenizer.from_pretrained(tiny_model, additional_special_tokens=["What"])
    saved.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"

    load_everywhere(path)

    config = json.loads(path.read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["What"]
    assert not isinstance(config.get("extra_special_tokens"), list)
    assert not {"is_local", "local_files_only", "model_specific_special_tokens"} & config.keys()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXT)["input_ids"] == saved(TEXT)["input_ids"]
    assert set(loaded.all_special_tokens) == set(saved.all_special_tokens)
