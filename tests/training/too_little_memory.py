"""Memory that runs out in a model's forward passes: torch's allocator really fails, at batches of a test's choice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def too_little_memory(model: torch.nn.Module, fails: Callable[[int], bool]) -> Iterator[None]:
    """Make torch fail to allocate in forward passes of so many rows; at least one has to.

    Args:
        model: Whose forward passes.
        fails: Whether one of so many rows does; asked at each.
    """
    failed: list[int] = []

    def allocate(_module: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        rows = len(keywords["input_ids"])
        if fails(rows):
            failed.append(rows)
            torch.empty(2**60, dtype=torch.uint8)

    handle = model.register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    assert failed
