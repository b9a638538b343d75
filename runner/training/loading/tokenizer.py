"""Loads the tokenizer, first of all and outside the ladder: no quantization rung can cure a tokenizer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, tokenization_utils_base

from runner.errors import TokenizerError
from runner.events import TokenizerLoaded
from runner.redaction import redact
from runner.training.loading.base_model import BaseModel

DEFECTIVE_TRANSFORMERS = "4.57.2"
WORKAROUND = (
    "transformers 4.57.2 reads config.json as a dict and asks it for .model_type "
    "(https://github.com/huggingface/transformers/issues/42374); worked around for this one load"
)

PadChoice = Literal["existing", "reserved", "unk", "eos"]

# Tokens that a vocabulary sets aside, in the order of preference; a trained model never produces them.
_RESERVED_MARKS = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|reserved_special_token_0|>",
    "<unused0>",
)

_PATCH_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer that has a pad token, and what there is to tell about it."""

    tokenizer: PreTrainedTokenizerBase
    event: TokenizerLoaded


def load_tokenizer(base: BaseModel) -> LoadedTokenizer:
    """Load a base model's tokenizer and make sure that it can pad without new embeddings.

    Raises:
        TokenizerError: The files are missing or damaged, or there is no token to pad with.
    """
    try:
        with _config_with_attributes() as defect:
            tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise TokenizerError(
            f"The tokenizer of {base.name!r} in {base.folder} cannot be loaded: {redact(reason)}",
            hint="Check that tokenizer.json and tokenizer_config.json are there and complete.",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TokenizerError(
            f"The tokenizer of {base.name!r} in {base.folder} loads as {type(tokenizer).__name__}.",
            hint="Fetch the model's tokenizer files again.",
        )
    choice = _choose_pad_token(tokenizer, base)
    return LoadedTokenizer(
        tokenizer,
        TokenizerLoaded(
            tokenizer_class=type(tokenizer).__name__,
            vocab_size=len(tokenizer),
            pad_token=str(tokenizer.pad_token),
            pad_choice=choice,
            workaround=WORKAROUND if defect.met else None,
        ),
    )


def _choose_pad_token(tokenizer: PreTrainedTokenizerBase, base: BaseModel) -> PadChoice:
    if tokenizer.pad_token is not None:
        return "existing"
    vocabulary = tokenizer.get_vocab()
    reserved = next((token for token in _RESERVED_MARKS if token in vocabulary), None)
    if reserved is not None:
        tokenizer.pad_token = reserved
        return "reserved"
    if tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
        return "unk"
    if tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        return "eos"
    raise TokenizerError(
        f"The tokenizer of {base.name!r} has no pad, unknown or end token, so rows cannot be brought to one length.",
        hint="Name an existing token as eos_token in its tokenizer_config.json.",
    )


class _ConfigDict(dict[str, Any]):
    """config.json as transformers 4.57.2 takes it to be: `.model_type` works, and is None where the file has none."""

    def __init__(self, values: dict[str, Any], defect: _Defect) -> None:
        super().__init__(values)
        self._defect = defect

    @property
    def model_type(self) -> Any:
        self._defect.met = True
        return self.get("model_type")


class _Defect:
    """Whether the defective line was reached."""

    def __init__(self) -> None:
        self.met = False


class _Json:
    """The `json` module as one other module sees it: config.json is read as an object with attributes.

    Source: the cure in transformers 4.57.3 (https://github.com/huggingface/transformers/pull/42376), which reads
    `_config.get("model_type")` where 4.57.2 has `_config.model_type`.
    """

    def __init__(self, defect: _Defect) -> None:
        self._defect = defect

    def __getattr__(self, name: str) -> Any:
        return getattr(json, name)

    def load(self, file: IO[str], **options: Any) -> Any:
        values = json.load(file, **options)
        if isinstance(values, dict) and Path(str(getattr(file, "name", ""))).name == "config.json":
            return _ConfigDict(values, self._defect)
        return values


@contextmanager
def _config_with_attributes() -> Iterator[_Defect]:
    """On transformers 4.57.2, and only there, let its tokenizer loader find `.model_type` in the dict that it read.

    Exchanges one name in one module of transformers for the time of the block; the model's folder is not touched.
    """
    defect = _Defect()
    if transformers.__version__ != DEFECTIVE_TRANSFORMERS:
        yield defect
        return
    with _PATCH_LOCK:
        namespace = vars(tokenization_utils_base)
        original = namespace["json"]
        namespace["json"] = _Json(defect)
        try:
            yield defect
        finally:
            namespace["json"] = original
