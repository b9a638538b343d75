"""Keeps an event within a size that Redis can hold many of, and says what it has left out. Pure."""

from __future__ import annotations

from typing import Any, TypeVar

from runner.events import Event

MOST_BYTES = 16_384
"""Of one event as JSON. Real ones have some hundred; a traceback, a chat template or a thousand rows may come along."""
# A path in full as long as that is enough; then ever less of every text, at last of every list.
_STEPS = ((4096, 1000), (1024, 1000), (256, 1000), (256, 100), (256, 10), (64, 3))

AnyKind = TypeVar("AnyKind", bound=Event)


def within_size(event: AnyKind) -> AnyKind:
    """The event itself where it is small enough, else one with its long texts and lists shortened in the middle.

    A text says how much of it is missing; so does a list of texts. What has been left out stands in the attempt's
    `events.jsonl`.
    """
    if _size(event) <= MOST_BYTES:
        return event
    fields = event.model_dump(mode="json")
    for most_characters, most_items in _STEPS:
        short = type(event).model_validate(_shortened(fields, most_characters, most_items))
        if _size(short) <= MOST_BYTES:
            break
    return short


def _size(event: Event) -> int:
    return len(event.model_dump_json().encode())


def _shortened(value: Any, most_characters: int, most_items: int) -> Any:
    match value:
        case str() if len(value) > most_characters:
            kept = most_characters // 2
            return f"{value[:kept]} … [{len(value) - 2 * kept} characters left out] … {value[-kept:]}"
        case list():
            items = [_shortened(item, most_characters, most_items) for item in value]
            if len(items) <= most_items:
                return items
            kept = max(1, most_items // 2)
            only_texts = all(isinstance(item, str) for item in items)
            return [*items[:kept], *[f"… [{len(items) - 2 * kept} left out] …"] * only_texts, *items[-kept:]]
        case dict():
            return {name: _shortened(item, most_characters, most_items) for name, item in value.items()}
        case _:
            return value
