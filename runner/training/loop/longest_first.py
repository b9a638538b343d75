"""The order of a trial's rows: the longest at once in its first two steps, as a run's peak is at its longest batch.

Twice, because only from the second step on the optimizer's state is there as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler
from typing_extensions import override

STEPS = 2
"""Of the run, whose first batch holds the longest rows."""


class LongestFirst(Sampler[int]):
    """Another sampler's order with the longest rows put before it; what falls off its end, a trial never reaches.

    Args:
        order: Which rows the run itself would draw.
        lengths: Tokens of every row.
        batch: Rows at once, of all ranks together.
        step: Rows of one optimizer step, of all ranks together.
    """

    def __init__(self, order: Sampler[int], lengths: Sequence[int], *, batch: int, step: int) -> None:
        self._order = order
        self._longest = sorted(range(len(lengths)), key=lambda row: -lengths[row])[:batch]
        self._step = step

    @override
    def __iter__(self) -> Iterator[int]:
        order = iter(self._order)
        for position in range(len(self)):
            number, place = divmod(position, self._step)
            first = number < STEPS and place < len(self._longest)
            yield self._longest[place] if first else next(order)

    def __len__(self) -> int:
        return len(self._order)  # type: ignore[arg-type]  # every sampler of a finite data set has a length
