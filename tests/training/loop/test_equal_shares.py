"""Rows dealt out to several ranks; with real ranks in `test_ranks`."""

from __future__ import annotations

import pytest
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import BatchSampler

from runner.training.loop.equal_shares import EqualShares, fill_up

pytestmark = pytest.mark.training


@pytest.mark.parametrize(("rows", "batch"), [(20, 3), (12, 3), (5, 4), (1, 2)])
@pytest.mark.parametrize("epoch", [0, 3])
def test_shares_hold_every_row_once_in_the_order_of_one_process(rows: int, batch: int, epoch: int) -> None:
    filled = -(-rows // (2 * batch)) * 2 * batch
    alone = SeedableRandomSampler(range(rows), data_seed=42)
    alone.set_epoch(epoch)

    shares = [
        list(
            BatchSamplerShard(
                BatchSampler(EqualShares(rows, filled - rows, seed=42, epoch=lambda: epoch), batch, drop_last=False),
                num_processes=2,
                process_index=rank,
            )
        )
        for rank in (0, 1)
    ]

    assert len(shares[0]) == len(shares[1]) == filled // (2 * batch)
    dealt = [row for pair in zip(*shares, strict=True) for share in pair for row in share]
    assert dealt == [*alone, *range(rows, filled)]


def test_filling_up_appends_rows_without_loss() -> None:
    rows = Dataset.from_dict({"input_ids": [[7, 8], [9]], "labels": [[-100, 8], [9]], "seq_lengths": [[1, 1], [1]]})

    filled = fill_up(rows, 6)

    assert filled[:2] == rows[:]
    assert filled[2:] == {"input_ids": [[7]] * 4, "labels": [[-100]] * 4, "seq_lengths": [[1]] * 4}
    assert fill_up(rows, 2) is rows
