"""Asking a model in the middle of its training without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Switch to inference, and give the model's mode and the random numbers back as they were."""
    was_training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        # Autocast, because in mid-training `modules_to_save` are float32 under a bfloat16 base.
        with (
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            torch.autocast(model.device.type, dtype=model.dtype, enabled=model.dtype != torch.float32),
        ):
            yield
    finally:
        model.train(was_training)
