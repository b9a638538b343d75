"""Finds out which sample prompts the model is trained on: what it answers there shows memory, not ability."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runner.row_formats import RowFormat


class SeenPrompts:
    """Compares prompts with rows as texts, white space aside.

    Not as tokens: a system's turn before it or an earlier question makes the same question other tokens.

    Args:
        prompts: `evaluation.prompts`.
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        self._unseen = {prompt: _plain(prompt) for prompt in prompts}
        self._prompts = tuple(self._unseen)

    def trained_on(self, row_format: RowFormat, row: dict[str, Any]) -> None:
        """Look for the prompts in a row that is trained on.

        Args:
            row_format: Its format.
            row: The row; a text asks what it begins with.
        """
        if not self._unseen:
            return
        if row_format == "text":
            text = _plain(row["text"])
            seen = [prompt for prompt, plain in self._unseen.items() if text.startswith(plain)]
        else:
            questions = {_plain(question) for question in _questions(row_format, row)}
            seen = [prompt for prompt, plain in self._unseen.items() if plain in questions]
        for prompt in seen:
            del self._unseen[prompt]

    @property
    def seen(self) -> tuple[str, ...]:
        """The prompts found so far, in the project's order."""
        return tuple(prompt for prompt in self._prompts if prompt not in self._unseen)


def _questions(row_format: RowFormat, row: dict[str, Any]) -> list[str]:
    if row_format == "prompt_completion":
        return [row["prompt"]]
    return [message["content"] for message in row["messages"] if message["role"] == "user"]


def _plain(text: str) -> str:
    return " ".join(text.split())
