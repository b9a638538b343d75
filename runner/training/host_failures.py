"""Puts into words what a host brings about while a model trains or is evaluated; loading has words of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runner.errors import DiskFullError, MemoryExhaustedError, TrainingError
from runner.training.loading.failure_marks import is_disk_full, is_out_of_memory


@contextmanager
def explained_failures() -> Iterator[None]:
    """Give the two failures that a host brings about the words of a person; loading has its own."""
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryExhaustedError(
                "The base model fits into this device's memory, but what training or evaluating it needs does not.",
                hint=(
                    "Halve training.per_device_train_batch_size and double gradient_accumulation_steps, set "
                    "gradient_checkpointing = true, or lower max_length."
                ),
            ) from error
        if is_disk_full(error):
            raise DiskFullError(
                "The disk is full where the run directory lies.", hint="Free some space, then start the job again."
            ) from error
        raise
