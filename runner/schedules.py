"""The learning rate schedules of transformers: what each takes, and what it would silently leave out. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from runner.strict import Contradiction
from runner.suggestions import did_you_mean

Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "warmup_stable_decay",
    "reduce_lr_on_plateau",
]

_MINIMUM = {"num_cycles", "min_lr", "min_lr_rate"}
TAKEN: Mapping[Schedule, frozenset[str]] = {
    "linear": frozenset(),
    "cosine": frozenset({"num_cycles"}),
    "cosine_with_restarts": frozenset({"num_cycles"}),
    "cosine_with_min_lr": frozenset(_MINIMUM),
    "cosine_warmup_with_min_lr": frozenset(_MINIMUM | {"warmup_lr_rate"}),
    "polynomial": frozenset({"lr_end", "power"}),
    "constant": frozenset(),
    "constant_with_warmup": frozenset(),
    "inverse_sqrt": frozenset({"timescale"}),
    "warmup_stable_decay": frozenset(
        {"num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"}
    ),
    "reduce_lr_on_plateau": frozenset(
        {"factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"}
    ),
}
"""What each takes in `lr_scheduler_kwargs`, on all tested stacks; `mode` of the last is always that of a loss."""
WITHOUT_WARMUP: Mapping[Schedule, str] = {
    "constant": 'set lr_scheduler_type = "constant_with_warmup"',
    "reduce_lr_on_plateau": "remove the warmup, or choose another schedule",
}
"""Those that leave a warmup out without a word, and what to do instead."""

_KIND, _VALUES = "lr_scheduler_type", "lr_scheduler_kwargs"


def schedule_contradictions(
    kind: Schedule, given: Mapping[str, int | float | str], warmup: str | None, warmup_length: float, max_steps: int
) -> Iterator[Contradiction]:
    """Find what a schedule would leave out, or fail at only when training begins.

    Args:
        kind: `training.lr_scheduler_type`.
        given: `training.lr_scheduler_kwargs`.
        warmup: The setting that asks for a warmup, None without one.
        warmup_length: Optimizer steps, or below 1 a share of all steps.
        max_steps: `training.max_steps`, below 1 where epochs count.
    """
    if warmup_length > 1 and not float(warmup_length).is_integer():
        yield Contradiction("must be a whole number of steps, or below 1 a share of all steps", ("warmup_steps",))
    if warmup is not None and kind in WITHOUT_WARMUP:
        yield Contradiction(f"is left out by lr_scheduler_type = {kind!r}; {WITHOUT_WARMUP[kind]}", (warmup, _KIND))
    elif warmup is not None and 1 <= max_steps <= warmup_length:
        yield Contradiction(
            f"takes all of max_steps = {max_steps}, so that learning_rate is never reached; give it fewer",
            (warmup, "max_steps"),
        )
    for name in given:
        if name not in TAKEN[kind]:
            takes = ", ".join(sorted(TAKEN[kind])) or "nothing"
            yield Contradiction(
                f"names {name!r}, but lr_scheduler_type = {kind!r} takes {takes}{did_you_mean(name, TAKEN[kind])}",
                (_VALUES, _KIND),
            )
    if {"min_lr", "min_lr_rate"} <= TAKEN[kind] and len({"min_lr", "min_lr_rate"} & given.keys()) != 1:
        yield Contradiction(
            f"must give lr_scheduler_type = {kind!r} either min_lr or min_lr_rate, such as {{ min_lr_rate = 0.1 }}",
            (_VALUES, _KIND),
        )
    if kind == "warmup_stable_decay":
        decay = given.get("num_decay_steps")
        if not isinstance(decay, int):
            yield Contradiction(f"must give lr_scheduler_type = {kind!r} num_decay_steps, a number", (_VALUES, _KIND))
        elif "num_stable_steps" not in given and 1 <= max_steps < decay + _in_steps(warmup_length, max_steps):
            yield Contradiction(
                f"has {decay} num_decay_steps, which with the warmup are more than max_steps = {max_steps}",
                (_VALUES, "max_steps"),
            )


def _in_steps(length: float, all_steps: int) -> int:
    return math.ceil(length * all_steps) if length < 1 else int(length)
