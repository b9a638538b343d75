"""Guesses which known name somebody meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_FEWEST_LETTERS = 4
"""Of a typed word that is looked for inside longer names, as `epochs` in `num_train_epochs`."""


_BROUGHT_ALONG = {
    "batch_size": "per_device_train_batch_size",
    "adam": "adamw_torch",
    "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "paged_adamw": "paged_adamw_32bit",
    "lion": "lion_32bit",
    "16bit": "none",
    "int4": "4bit",
    "int8": "8bit",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}
"""What people type by habit, where another name is nearer by its letters or none is."""


def nearest(typed: str, known: Iterable[str]) -> str | None:
    """Return the nearest of the known names, None where none is near."""
    names = sorted(known, key=len)
    near = [name for name in names if name == _BROUGHT_ALONG.get(typed)]
    # Abbreviations, such as `lr` for learning_rate.
    near += [name for name in names if len(typed) > 1 and typed == "".join(word[:1] for word in name.split("_"))]
    near += difflib.get_close_matches(typed, names, n=1)
    near += [name for name in names if len(typed) >= _FEWEST_LETTERS and typed in name]
    return near[0] if near else None


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """Return the end of a sentence, `; did you mean 'x'?`, or an empty text."""
    near = nearest(typed, known)
    return f"; did you mean {near!r}?" if near else ""
