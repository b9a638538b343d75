"""Chooses which rows are trained on and which are held out. Pure: row numbers in, row numbers out.

Every dataset has one order, shuffled by seed and dataset id. Training draws from its front and the held-out rows are
drawn from its back, so they are rows that nobody trains on as long as percentages leave any.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runner.spec import DatasetShare

HELD_OUT_AT_MOST = 200
"""Held-out rows a trait: more would make the loss hardly more certain, and every evaluation slower."""
FEWEST_ROWS = 10
"""A smaller dataset gives no held-out row: one row would be more than a tenth of what there is to learn."""


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """What one dataset of one trait contributes, as row numbers in file order. No row is in both."""

    trained: list[int]
    held_out: list[int]


def draw_rows(
    shares: Sequence[tuple[str, DatasetShare]],
    available: Mapping[int, int],
    *,
    held_out_percentage: float,
    seed: int,
) -> list[DrawnRows]:
    """Draw the rows of every share.

    A draw depends on the seed and the dataset's id: another dataset changes nothing, and a larger percentage only adds
    rows. Two traits that use the same dataset draw the same rows first, and what one of them holds out none trains on.

    Args:
        shares: Name of the trait and its share of a dataset, in the project's order.
        available: Rows of each dataset, at least 1, by dataset id.
        held_out_percentage: Per cent of a share's rows, for shares that name none themselves.
        seed: `training.seed`.

    Returns:
        One entry a share, in the same order.
    """
    counts = [_rows_to_train(available[share.dataset_id], share) for _, share in shares]
    wanted = _rows_to_hold_out(shares, counts, available, held_out_percentage)
    drawn = []
    for (_, share), count, held_out in zip(shares, counts, wanted, strict=True):
        order = _order(available[share.dataset_id], share.dataset_id, seed)
        most = max(
            rows for (_, other), rows in zip(shares, wanted, strict=True) if other.dataset_id == share.dataset_id
        )
        trained = order[: min(count, len(order) - most)]
        drawn.append(DrawnRows(sorted(trained), sorted(order[len(order) - held_out :])))
    return drawn


def asked_of(share: DatasetShare, held_out_percentage: float) -> float:
    """Per cent of a share's rows that are to be held out: what the share says itself, else what the project says."""
    return held_out_percentage if share.held_out_percentage is None else share.held_out_percentage


def _order(available: int, dataset_id: int, seed: int) -> list[int]:
    order = list(range(available))
    random.Random(f"{seed}/{dataset_id}").shuffle(order)  # noqa: S311  # a repeatable draw, nothing secret
    return order


def _rows_to_train(available: int, share: DatasetShare) -> int:
    count = _share_of(available, share.percentage)
    return count if share.max_rows is None else min(count, share.max_rows)


def _rows_to_hold_out(
    shares: Sequence[tuple[str, DatasetShare]],
    counts: Sequence[int],
    available: Mapping[int, int],
    held_out_percentage: float,
) -> list[int]:
    wanted = []
    for (_, share), count in zip(shares, counts, strict=True):
        percentage = asked_of(share, held_out_percentage)
        enough = percentage > 0 and available[share.dataset_id] >= FEWEST_ROWS
        wanted.append(_share_of(count, percentage) if enough else 0)
    traits = [trait for trait, _ in shares]
    totals = {name: sum(rows for trait, rows in zip(traits, wanted, strict=True) if trait == name) for name in traits}
    return [
        max(1, rows * HELD_OUT_AT_MOST // totals[trait]) if rows and totals[trait] > HELD_OUT_AT_MOST else rows
        for trait, rows in zip(traits, wanted, strict=True)
    ]


def _share_of(rows: int, percentage: float) -> int:
    """Rounded half up, at least 1: Python's own rounding would draw 2 of 5 at 50 % but 4 of 7."""
    return max(1, int(rows * percentage / 100 + 0.5))
