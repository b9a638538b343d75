"""Turns rows into token ids and says which of them carry loss, by position and never by token id.

A token is trained or not because of where it stands, so a pad token that equals the end token cannot unlearn the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import TemplateError

from runner.errors import DatasetError, TokenizerError
from runner.row_formats import RowFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

PLAIN_CHAT_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
"""For a base model that brings none: plain words, no token that the model has never seen."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row as tokens, not yet truncated."""

    input_ids: list[int]
    trained: list[bool]
    """Same length: whether the token carries loss."""


_REFUSALS_TOLD = 5
"""Rows told of one dataset that the chat template refuses; mostly it refuses all of a kind."""


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    row_format: RowFormat,
    rows: Sequence[dict[str, Any]],
    *,
    numbers: Sequence[int] | None = None,
) -> list[EncodedRow]:
    """Encode rows of one format; every row ends with a trained end token.

    Args:
        tokenizer: Its `chat_template` renders messages; set `PLAIN_CHAT_TEMPLATE` where there is none.
        row_format: What `runner.training.data.reading` found.
        rows: Rows of that format.
        numbers: What rows are called when they are refused, counted from 1; by their order where None.

    Raises:
        DatasetError: The chat template refuses rows, or cannot be split into turns; names the first few.
        TokenizerError: The tokenizer has no end token, or gives no offsets for messages.
    """
    if tokenizer.eos_token_id is None:
        raise TokenizerError("The tokenizer has no end token, so the model could never learn to stop.")
    if row_format == "prompt_completion":
        return _encode_prompt_completion(tokenizer, rows)
    if row_format == "messages":
        numbers = range(1, len(rows) + 1) if numbers is None else numbers
        return _of_each(rows, numbers, partial(_encode_messages, tokenizer))
    encoded = encode_texts(tokenizer, [row["text"] for row in rows])
    return [_ended(tokenizer, EncodedRow(ids, [True] * len(ids))) for ids in encoded]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[list[int]]:
    """Encode texts as the model expects a beginning: with its begin token, without an end token."""
    texts = list(texts)
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
    # Some tokenizers append the end token by themselves; in front of a completion it would end the text.
    end = tokenizer.eos_token_id
    return [list(ids[:-1] if len(ids) > 1 and ids[-1] == end else ids) for ids in encoded]


def encode_question(tokenizer: PreTrainedTokenizerBase, prompt: str, *, as_chat: bool) -> list[int]:
    """Encode a prompt to answer: as a user's turn, or as plain text to go on from."""
    if not as_chat:
        return encode_texts(tokenizer, [prompt])[0]
    text = _render(tokenizer, [{"role": "user", "content": prompt}], ask=True)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encode_answered(
    tokenizer: PreTrainedTokenizerBase, row_format: RowFormat, rows: Sequence[dict[str, Any]]
) -> tuple[list[list[int]], list[str]]:
    """Encode what leads up to the last answer of each row, as it is trained.

    Returns:
        The questions, and the answers that would be right; those of conversations without white space around them.

    Raises:
        DatasetError: The chat template refuses rows; names the first few.
    """
    if row_format == "prompt_completion":
        return encode_texts(tokenizer, [row["prompt"] for row in rows]), [row["completion"] for row in rows]
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE

    def ask(messages: list[dict[str, str]]) -> tuple[list[int], str]:
        turn = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        if not turn:
            raise _UnsplittableError("it begins with its only answer, so there is nothing to ask")
        text = _render(tokenizer, messages[:turn], ask=True)
        question = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return question, messages[turn]["content"].strip()

    asked = _of_each(rows, range(1, len(rows) + 1), ask)
    return [question for question, _ in asked], [answer for _, answer in asked]


def _ended(tokenizer: PreTrainedTokenizerBase, row: EncodedRow) -> EncodedRow:
    end = int(tokenizer.eos_token_id)
    if row.input_ids and row.input_ids[-1] == end and row.trained[-1]:
        return row
    return EncodedRow([*row.input_ids, end], [*row.trained, True])


def _encode_prompt_completion(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> list[EncodedRow]:
    prompts = encode_texts(tokenizer, [row["prompt"] for row in rows])
    wholes = encode_texts(tokenizer, [row["prompt"] + row["completion"] for row in rows])
    encoded = []
    for row, prompt, whole in zip(rows, prompts, wholes, strict=True):
        ids = whole
        # A merge across the border would train on a prompt that no question ever has; then each side stands alone.
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            completion = tokenizer(row["completion"], add_special_tokens=False, verbose=False)["input_ids"]
            ids = prompt + list(completion)
        trained = [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        encoded.append(_ended(tokenizer, EncodedRow(ids, trained)))
    return encoded


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, ask: bool = False) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))


def _of_each(
    rows: Sequence[dict[str, Any]], numbers: Sequence[int], render: Callable[[list[dict[str, str]]], T]
) -> list[T]:
    """Render every conversation, and tell of all that the chat template refuses."""
    rendered: list[T] = []
    refused: list[str] = []
    for number, row in zip(numbers, rows, strict=True):
        try:
            rendered.append(render(row["messages"]))
        except (TemplateError, _UnsplittableError) as error:
            refused.append(f"row {number}: {' '.join(str(error).split()) or type(error).__name__}")
    if refused:
        told = [*refused[:_REFUSALS_TOLD], *_further(len(refused) - _REFUSALS_TOLD)]
        raise DatasetError(
            f"the base model's chat template refuses {'; '.join(told)}.",
            hint='Bring the turns into the order that the template asks for, set training.chat_template = "plain", or '
            "use rows with prompt and completion instead of messages.",
        )
    return rendered


def _further(count: int) -> list[str]:
    return [f"and {count} more"] if count > 0 else []


class _UnsplittableError(Exception):
    """Where an answer stands in the rendered conversation cannot be found."""


def _encode_messages(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> EncodedRow:
    if not tokenizer.is_fast:
        raise TokenizerError(
            "The tokenizer gives no character offsets, so assistant turns cannot be told apart.",
            hint="Use rows with prompt and completion, or a base model with a fast tokenizer.",
        )
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    # What follows the last answer carries no loss, and the end token belongs behind that answer.
    messages = messages[: turns[-1] + 1]
    text = _render(tokenizer, messages)
    spans = [_span_of_turn(tokenizer, messages, turn, text) for turn in turns]
    text = text[: spans[-1][1]]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # A token that stands partly in an answer belongs to it: without it the answer would begin in the middle.
    trained = [any(start < last and end > first for first, last in spans) for start, end in encoding["offset_mapping"]]
    return _ended(tokenizer, EncodedRow(list(encoding["input_ids"]), trained))


def _span_of_turn(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], turn: int, text: str
) -> tuple[int, int]:
    """Find where an assistant's turn stands in the rendered `text`, its end-of-turn token included.

    Rendering only what leads up to the turn shows where it begins. Where it ends is searched for, because some
    templates render an earlier turn differently once others follow it.
    """
    alone = _render(tokenizer, messages[: turn + 1])
    content = messages[turn]["content"].strip()
    # Nothing leads up to a turn that begins the conversation but what the template itself writes.
    before = _render(tokenizer, messages[:turn], ask=True) if turn else text[: max(0, text.find(content))]
    found = text.find(content, len(before)) if text.startswith(before) else -1
    if found < 0 or content not in alone:
        raise _UnsplittableError("it cannot be split into turns, so answers cannot be trained apart")
    end = found + len(content)
    tail = alone[alone.rindex(content) + len(content) :].rstrip()
    return len(before), end + len(tail) if text.startswith(tail, end) else end
