"""Makes a run that goes on in the middle of a later epoch see the rows that are left of that epoch.

accelerate 1.12 builds a new data loader to skip the batches that are done and forgets which epoch it was for, so such a
run went on with the first epoch's order: some rows twice, others never, and no error. Source: `skip_first_batches` in
accelerate 1.12.0, which 1.15.0 corrects by the same assignment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers.trainer
from accelerate import skip_first_batches


@contextmanager
def epoch_kept() -> Iterator[None]:
    """Keep the epoch of a data loader whose first batches are skipped, for the block."""
    module: Any = transformers.trainer
    former = module.skip_first_batches
    module.skip_first_batches = _skip
    try:
        yield
    finally:
        module.skip_first_batches = former


def _skip(dataloader: Any, num_batches: int = 0) -> Any:
    skipped = skip_first_batches(dataloader, num_batches)
    skipped.iteration = dataloader.iteration
    return skipped
