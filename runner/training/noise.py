"""Keeps out of train.log what libraries say at every load or every step and what nobody could act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LINES = {
    # LLM.int8 multiplies in float16, whatever comes in; bitsandbytes 0.50 says so at every single product.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
    # A kernel for inference on a CPU. Training must not use it (`quantized.keep_training_layout`).
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}
"""Logger to the beginning of what it is not to say; everything else it says comes through."""


class _Without(logging.Filter):
    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginning)


def silence_loggers() -> None:
    """Silence `LINES`. Called when the package is imported, before bitsandbytes is: one comes with its import."""
    for name, beginning in LINES.items():
        logging.getLogger(name).addFilter(_Without(beginning))


@contextmanager
def without_bars() -> Iterator[None]:
    """Switch transformers' progress bars off for the block: in a file each redraw is a piece of one endless line."""
    # Imported here: naming the package loads no transformers.
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # left bare
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # left bare
