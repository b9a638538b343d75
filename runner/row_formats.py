"""What a row means: five formats that people write, turned into the three that are trained on. Pure.

| written | columns | becomes |
|---|---|---|
| `messages` | `messages`: turns with role and content | `messages` |
| `sharegpt` | `conversations`: turns with from and value; `system` | `messages` |
| `prompt_completion` | `prompt`, `completion`: text | `prompt_completion` |
| `prompt_completion` | `prompt`, `completion`: turns, as TRL's conversational rows have them | `messages` |
| `alpaca` | `instruction`, `output`; `input`, `system` | `messages` |
| `text` | `text` | `text` |

Loss is on the completion, on every assistant turn, or on the whole text. The first good row of a dataset decides the
format and every other row must follow. Further columns are ignored.

An alpaca row becomes a conversation because that suits every base model: one with a chat template is taught in the form
in which people will ask it, and one without gets the plain template of `runner.training.data.encoding`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from runner.layout import Layout, WrittenFormat
from runner.suggestions import did_you_mean

RowFormat = Literal["prompt_completion", "messages", "text"]
"""What rows are once they are read."""

_ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}

_LISTED = 100
"""Characters of column names in a message."""

Row = dict[str, Any]


class MissingColumnError(ValueError):
    """A row does not have the columns that it should; the message continues the sentence `row 3: …`."""


@dataclass(frozen=True, slots=True)
class _Format:
    needed: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[RowFormat, Row]]
    optional: tuple[str, ...] = ()


class RowReader:
    """Reads the rows of one dataset, which are all of one kind.

    Args:
        layout: What the catalog says about it.
    """

    def __init__(self, layout: Layout) -> None:
        self._columns = dict(layout.columns)
        self._written = layout.format
        self._format: RowFormat | None = None
        self._first_row = 0

    @property
    def columns(self) -> frozenset[str]:
        """Every column of a dataset that is looked at."""
        return frozenset(ALL_COLUMNS) | frozenset(self._columns.values())

    def read(self, row: int, value: object) -> tuple[RowFormat, Row]:
        """Turn one row into what it is trained as.

        Args:
            row: Its 1-based number.
            value: What the file holds.

        Raises:
            ValueError: It is not what it should be; the message continues the sentence `row 3: …`.
        """
        if not isinstance(value, dict):
            raise ValueError(f"must be an object, found {kind_of(value)}")  # noqa: TRY004 - one kind of error for a row
        fields = self._renamed(value)
        written = self._written or self._recognised(fields, value)
        for name in _FORMATS[written].needed:
            if name not in fields:
                self._refuse_as(written, name, value)
        row_format, found = _FORMATS[written].read(fields)
        if self._format is None:
            self._written, self._format, self._first_row = written, row_format, row
        elif row_format != self._format:
            raise ValueError(
                f"is {_SPOKEN[row_format]}, but row {self._first_row} is {_SPOKEN[self._format]}; "
                "one dataset holds one kind"
            )
        return row_format, found

    def _renamed(self, value: Row) -> Row:
        if not self._columns:
            return value
        missing = {name: column for name, column in self._columns.items() if column not in value}
        if missing:
            wanted = " and no ".join(f"column {column!r} for {name}" for name, column in missing.items())
            near = "".join(did_you_mean(column, map(str, value)) for column in missing.values())
            raise MissingColumnError(f"has no {wanted}; found {_listed(value)}{near}")
        return value | {name: value[column] for name, column in self._columns.items()}

    def _recognised(self, fields: Row, value: Row) -> WrittenFormat:
        possible = formats_with(self._columns)
        for written in possible:
            if all(name in fields for name in _FORMATS[written].needed):
                return written
        choices = " or ".join(" + ".join(_FORMATS[written].needed) for written in possible)
        raise MissingColumnError(f"must have {choices}; found {_listed(value)}")

    def _refuse_as(self, written: WrittenFormat, name: str, value: Row) -> None:
        column = self._columns.get(name, name)
        near = did_you_mean(column, map(str, value))
        why = f", as row {self._first_row} is {written}" if self._first_row else f", which {written} needs"
        raise MissingColumnError(f"has no {column!r}{why}; found {_listed(value)}{near}")


_SPOKEN: dict[RowFormat, str] = {
    "messages": "a conversation",
    "prompt_completion": "prompt and completion as text",
    "text": "plain text",
}


def _listed(value: Row) -> str:
    names = ", ".join(map(repr, value))
    return (names[: _LISTED - 1] + "…" if len(names) > _LISTED else names) or "no columns"


def kind_of(value: object) -> str:
    """Say what kind of thing a value is, in a person's words."""
    return _NAMES.get(type(value), type(value).__name__)


def _shown(value: object) -> str:
    if isinstance(value, str | int | float) or value is None:
        return json.dumps(value, ensure_ascii=False)[:60]
    return kind_of(value)


def _text(value: object, name: str, *, blank: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, found {_shown(value)}")  # noqa: TRY004 - one kind of error for a row
    if not blank and not value.strip():
        raise ValueError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half of a surrogate pair, which is no character") from error
    return value


def _content(value: object, name: str) -> str:
    """The text of a turn; OpenAI's lists of text parts are joined as they stand."""
    if not isinstance(value, list):
        return _text(value, name, blank=True)
    parts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        if not isinstance(part, dict) or kind != "text":
            raise ValueError(f"{name} holds a part of type {_shown(kind)}; only text can be trained on")
        parts.append(_text(part.get("text"), f"a part of {name}", blank=True))
    return "".join(parts)


def _turns(value: object, name: str) -> list[Row]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name!r} must be a list of turns, found {'an empty list' if value == [] else _shown(value)}")
    turns = []
    for number, turn in enumerate(value, start=1):
        # `in` a tuple compares, so a role of any type may stand there.
        role = turn.get("role") if isinstance(turn, dict) else None
        if not isinstance(turn, dict) or role not in _ROLES:
            found = f"'role' {_shown(role)}" if role is not None else _found_in(turn)
            raise ValueError(f"turn {number} of {name!r} needs a 'role' of {', '.join(_ROLES)}, found {found}")
        content = _content(turn.get("content"), f"'content' of turn {number}")
        if role == "assistant" and turn.get("weight") == 0:
            raise ValueError(
                f"turn {number} of {name!r} has weight 0, but every assistant turn is trained on; take it out"
            )
        # Parquet gives every turn every key of any turn, empty where it had none.
        turns.append({key: one for key, one in turn.items() if one is not None} | {"content": content})
    return turns


def _found_in(turn: object) -> str:
    return _listed(turn) if isinstance(turn, dict) else _shown(turn)


def _teaches(turns: Sequence[Row], system: object = None) -> tuple[RowFormat, Row]:
    if system is not None and system != "":
        turns = [{"role": "system", "content": _text(system, "'system'")}, *turns]
    if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in turns):
        raise ValueError("has no assistant turn with text, so there is nothing to learn")
    return "messages", {"messages": list(turns)}


def _read_messages(fields: Mapping[str, Any]) -> tuple[RowFormat, Row]:
    return _teaches(_turns(fields["messages"], "messages"))


def _read_sharegpt(fields: Mapping[str, Any]) -> tuple[RowFormat, Row]:
    value = fields["conversations"]
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else _shown(value)
        raise ValueError(f"'conversations' must be a list of turns, found {found}")
    turns = []
    for number, turn in enumerate(value, start=1):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker is None:
            hint = ""
            if isinstance(turn, dict) and "role" in turn:
                hint = '; turns with role and content are read with columns = { messages = "conversations" }'
            raise ValueError(f"turn {number} needs 'from' and 'value', found {_found_in(turn)}{hint}")
        role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            known = ", ".join(_SHAREGPT_ROLES)
            raise ValueError(f"turn {number} is from {_shown(speaker)}; known are {known}")
        turns.append({"role": role, "content": _text(turn.get("value"), f"'value' of turn {number}", blank=True)})
    return _teaches(turns, fields.get("system"))


def _read_prompt_completion(fields: Mapping[str, Any]) -> tuple[RowFormat, Row]:
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, list) or isinstance(completion, list):
        asked, answered = _turns(prompt, "prompt"), _turns(completion, "completion")
        if any(turn["role"] == "assistant" for turn in asked):
            raise ValueError(
                "has an assistant turn in 'prompt', which would be trained on too; if it may be, write all turns as "
                "'messages'"
            )
        return _teaches(asked + answered)
    return "prompt_completion", {"prompt": _text(prompt, "'prompt'"), "completion": _text(completion, "'completion'")}


def _read_alpaca(fields: Mapping[str, Any]) -> tuple[RowFormat, Row]:
    if fields.get("history"):
        raise ValueError("has a 'history', which would get lost; write several turns as 'messages' or 'conversations'")
    instruction = _text(fields["instruction"], "'instruction'")
    context = fields.get("input")
    context = "" if context is None else _text(context, "'input'", blank=True)
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    answer = _text(fields["output"], "'output'")
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return _teaches(turns, fields.get("system"))


def _read_text(fields: Mapping[str, Any]) -> tuple[RowFormat, Row]:
    return "text", {"text": _text(fields["text"], "'text'")}


# In this order a row with the columns of several formats is recognised: alpaca files often carry a `text` as well.
_FORMATS: dict[WrittenFormat, _Format] = {
    "messages": _Format(("messages",), _read_messages),
    "sharegpt": _Format(("conversations",), _read_sharegpt, optional=("system",)),
    "prompt_completion": _Format(("prompt", "completion"), _read_prompt_completion),
    "alpaca": _Format(("instruction", "output"), _read_alpaca, optional=("input", "system", "history")),
    "text": _Format(("text",), _read_text),
}
ALL_COLUMNS = tuple({name: None for layout in _FORMATS.values() for name in (*layout.needed, *layout.optional)})
"""Every column name that a format knows."""


def _columns_of(written: WrittenFormat) -> frozenset[str]:
    return frozenset((*_FORMATS[written].needed, *_FORMATS[written].optional))


def formats_with(columns: Collection[str]) -> list[WrittenFormat]:
    """The formats that know all of these columns."""
    return [written for written in _FORMATS if _columns_of(written).issuperset(columns)]
