"""What the count of a step does with operations that depend on numbers nobody has."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from runner.training.loop.step_memory import _Held

pytestmark = pytest.mark.training


def test_rows_chosen_by_a_mask_are_the_trained_ones() -> None:
    with FakeTensorMode():
        rows, mask = torch.ones(4, 8), torch.ones(4, dtype=torch.bool)
        with _Held(3, answer=0, known=[rows, mask]) as held:
            chosen = rows[mask]

    assert chosen.shape == (3, 8)
    assert held.peak_bytes == 3 * 8 * 4


def test_columns_chosen_by_a_mask_are_nobody_knows_how_many() -> None:
    with FakeTensorMode():
        rows, mask = torch.ones(4, 8), torch.ones(8, dtype=torch.bool)
        with _Held(3, answer=0, known=[rows, mask]), pytest.raises(DynamicOutputShapeException):
            rows[:, mask]
