"""Deals every epoch's rows out to the ranks so that an optimizer step sees the rows that one process would have seen.

accelerate evens out the last batches of an epoch by repeating rows from its beginning, which would train some of them
twice. Here rows without loss take the missing places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from typing_extensions import override

_WITHOUT_LOSS = {"labels": -100, "seq_lengths": 1}


def fill_up(rows: Dataset, multiple: int) -> Dataset:
    """Append rows of one token without loss until the number of rows is a multiple.

    Args:
        rows: Lists of numbers in every column: `input_ids`, `labels`, for packed rows `seq_lengths`.
        multiple: Rows that all ranks together see at once.
    """
    missing = -len(rows) % multiple
    if missing == 0:
        return rows
    row: dict[str, Any] = rows[0]
    filling = {name: [[_WITHOUT_LOSS.get(name, values[0])]] * missing for name, values in row.items()}
    return concatenate_datasets([rows, Dataset.from_dict(filling, features=rows.features)])


class EqualShares(Sampler[int]):
    """The order in which one process would draw the rows, then the filling; accelerate deals it out batch by batch.

    Args:
        rows: Rows with loss; they come first in the data set.
        filling: Rows without, behind them.
        seed: `data_seed`, from which accelerate draws one process's order as well.
        epoch: Asked at the beginning of each epoch. accelerate 1.15 does not tell a sampler that it is in a resumed
            epoch when there are several processes.
    """

    def __init__(self, rows: int, filling: int, *, seed: int, epoch: Callable[[], int]) -> None:
        self._order = SeedableRandomSampler(range(rows), data_seed=seed)
        self._filling = range(rows, rows + filling)
        self._epoch = epoch

    @override
    def __iter__(self) -> Iterator[int]:
        self._order.set_epoch(self._epoch())
        yield from self._order
        yield from self._filling

    def __len__(self) -> int:
        return len(self._order) + len(self._filling)
