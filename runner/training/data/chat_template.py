"""Chooses the template that renders messages: the base model's own, or a plain one where its marks mean nothing to it.

An instruct template on a base model marks turns with special tokens that only its instruct sibling was taught. Their
embeddings are still what they were before pretraining, and a frozen embedding cannot learn them: the loss explodes or
the model never learns where a turn ends.
Source: https://github.com/unslothai/unsloth/issues/658, https://github.com/meta-pytorch/torchtune/issues/2429
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import TemplateError

from runner.training.data.encoding import PLAIN_CHAT_TEMPLATE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.training.loading.base_model import BaseModel

_TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
_MARK = re.compile(r"<\|[^<>|\s]+\|>|<(?:start|end)_of_turn>")
"""What a special token looks like; a template that writes one which the vocabulary lacks is another model's."""
UNTRAINED = 1e-16
"""An embedding without any larger component was never trained: pretraining would have moved it."""


def settle_chat_template(
    tokenizer: PreTrainedTokenizerBase, embedding: Tensor | None, choice: Literal["auto", "own", "plain"]
) -> str | None:
    """Give the tokenizer the template that messages are rendered with.

    Args:
        tokenizer: The base model's; its `chat_template` is set.
        embedding: (vocabulary, width), the base model's input embedding; None where no model is loaded, and then only
            the vocabulary is looked at.
        choice: The project's `training.chat_template`.

    Returns:
        Why the base model's own template was put aside, None where it was not, or where there is none.
    """
    if tokenizer.chat_template is None or choice == "plain":
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        return None
    if choice == "own":
        return None
    unknown, untrained = _meaningless_marks(tokenizer, embedding)
    if not unknown and not untrained:
        return None
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    reasons = []
    if untrained:
        reasons.append(f"the base model was never trained on {', '.join(untrained)}")
    if unknown:
        reasons.append(f"its vocabulary has no token {', '.join(unknown)}")
    return (
        f"The base model's own chat template marks turns with tokens that mean nothing to it: {' and '.join(reasons)}. "
        'A plain template is used instead; training.chat_template = "own" would keep its own.'
    )


def has_untrained_marks(
    tokenizer: PreTrainedTokenizerBase, embedding: Tensor, choice: Literal["auto", "own", "plain"]
) -> bool:
    """Whether `settle_chat_template` would put the tokenizer's template aside now that the embedding is known."""
    return choice == "auto" and tokenizer.chat_template is not None and any(_meaningless_marks(tokenizer, embedding))


def stored_embedding(base: BaseModel, model: PreTrainedModel) -> Tensor | None:
    """Read the input embedding from the weight files, before the model is loaded.

    Args:
        base: Where the files are.
        model: The model without its weights, which knows what the tensor is called.

    Returns:
        (vocabulary, width); None where the files are not on this host yet, or hold it under another name or packed.
    """
    module: Any = model.get_input_embeddings()
    # A tied weight is stored once, under any of its names.
    names = {name for name, tensor in model.state_dict(keep_vars=True).items() if tensor is module.weight}
    found = base.read_tensor(names)
    return found if found is not None and found.is_floating_point() and found.shape == module.weight.shape else None


def input_embedding(model: PreTrainedModel) -> Tensor:
    """The weight (vocabulary, width) that token ids are looked up in; no rung quantizes it."""
    module: Any = model.get_input_embeddings()
    weight: Tensor = module.weight.detach()
    return weight


def _meaningless_marks(tokenizer: PreTrainedTokenizerBase, embedding: Tensor | None) -> tuple[list[str], list[str]]:
    """Look at the marks of a rendered conversation: those that are no tokens, and those that were never trained."""
    try:
        text = str(tokenizer.apply_chat_template(_TALK, tokenize=False))
    except TemplateError:
        # The rows tell more about what this template refuses than an invented conversation.
        return [], []
    vocabulary = tokenizer.get_vocab()
    unknown = sorted({mark for mark in _MARK.findall(text) if mark not in vocabulary})
    if embedding is None:
        return unknown, []
    added = tokenizer.get_added_vocab()
    used = set(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    marks = {token: row for token, row in added.items() if row in used}
    return unknown, sorted(token for token, row in marks.items() if _is_untrained(row, added.values(), embedding))


def _is_untrained(row: int, added: Iterable[int], embedding: Tensor) -> bool:
    """Whether an embedding is nothing, or the very same as another added token's: no training leaves two alike."""
    if row >= len(embedding):
        return True
    own = embedding[row]
    if float(own.abs().max()) <= UNTRAINED:
        return True
    others = [other for other in set(added) if other != row and other < len(embedding)]
    return bool((embedding[others] == own).all(dim=1).any())
