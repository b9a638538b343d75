"""Base models' folders that tests put together."""

import shutil
from pathlib import Path


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Give the base model in a folder the tokenizer of another, both saved by transformers."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, folder / file)
