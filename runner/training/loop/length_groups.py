"""Groups rows by length in an order that depends on seed and epoch alone, so that a resumed run finds it again.

Left to itself transformers draws the order from the random numbers of the moment at which an epoch begins, and a run
that is resumed in a later epoch has others: some rows would be trained on twice, others never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from typing_extensions import override


class LengthGroups(Sampler[int]):
    """transformers' groups, with a generator of their own.

    Args:
        groups: transformers' sampler.
        seed: `data_seed`.
        epoch: Asked at the beginning of each epoch.
    """

    def __init__(self, groups: LengthGroupedSampler, *, seed: int, epoch: Callable[[], int]) -> None:
        self._groups = groups
        self._seed = seed
        self._epoch = epoch

    @override
    def __iter__(self) -> Iterator[int]:
        self._groups.generator = torch.Generator().manual_seed(self._seed + self._epoch())
        yield from self._groups

    def __len__(self) -> int:
        return len(self._groups)
