"""Memory of the device that trains: what is free, what is held, what loading takes at its worst moment.

On CUDA PyTorch's own allocator counts. On a CPU the kernel's figures of this process are read, by a thread that looks
again and again, so a short spike may be missed. Weight files that the process only maps count where they stay mapped,
as an unquantized model's do, and not while they are copied: the kernel can drop those pages whenever it needs them.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from types import TracebackType
from typing import Self

import torch

from runner.host_memory import available_bytes, resident_bytes

_SAMPLE_S = 0.005


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device, None where nobody knows.

    What PyTorch's allocator keeps for reuse counts as free.
    """
    if device.type != "cuda":
        return available_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def held_bytes(device: torch.device) -> int | None:
    """Bytes that this process holds on a device, mapped files included; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    resident = resident_bytes()
    return None if resident is None else sum(resident)


def release_memory() -> None:
    """Give back to device and host whatever nobody refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # glibc keeps freed pieces of a model in its heap, where they look like memory in use.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class MemoryMeter:
    """Measures what happens inside its `with` block, in bytes above what was held when the block began.

    Args:
        device: To look at.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: tuple[int, int] | None = None
        self._highest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory-meter", daemon=True)

    @property
    def method(self) -> str:
        """How it measures, in words."""
        if self._device.type == "cuda":
            return "torch.cuda.max_memory_allocated"
        return f"resident memory of the process, read every {_SAMPLE_S * 1000:.0f} ms"

    @property
    def peak_bytes(self) -> int | None:
        """Most that the block has taken so far; None where nobody knows."""
        now = self._look()
        if now is None or self._start is None:
            return None
        own, mapped = self._start
        return max(0, self._highest - own + max(0, now[1] - mapped))

    @property
    def now_bytes(self) -> int | None:
        """What is held now of what the block has taken; None where nobody knows."""
        now = self._look()
        return None if now is None or self._start is None else max(0, sum(now) - sum(self._start))

    def _look(self) -> tuple[int, int] | None:
        """Bytes of its own, and of mapped files."""
        if self._device.type == "cuda":
            self._highest = torch.cuda.max_memory_allocated(self._device)
            return torch.cuda.memory_allocated(self._device), 0
        resident = resident_bytes()
        if resident is not None:
            self._highest = max(self._highest, resident[0])
        return resident

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self._look()

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._start = self._look()
        if self._device.type != "cuda" and self._start is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look()
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
