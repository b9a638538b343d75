from __future__ import annotations

import pytest
from torch.utils.data import SequentialSampler

from runner.training.loop.longest_first import LongestFirst

pytestmark = pytest.mark.training

LENGTHS = [3, 9, 2, 8, 1, 4, 7, 5, 6, 3]


def test_the_first_batch_of_two_steps_holds_the_longest_rows_and_the_rest_comes_as_drawn() -> None:
    order = LongestFirst(SequentialSampler(LENGTHS), LENGTHS, batch=2, step=4)

    assert list(order) == [1, 3, 0, 1, 1, 3, 2, 3, 4, 5]


def test_as_many_rows_come_as_without() -> None:
    for batch in (1, 4, 20):
        order = LongestFirst(SequentialSampler(LENGTHS), LENGTHS, batch=batch, step=batch)
        assert len(list(order)) == len(order) == len(LENGTHS)
