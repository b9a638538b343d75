"""The device that this process trains on, and the precision it computes in."""

from __future__ import annotations

import torch


def choose_device() -> torch.device:
    """The current CUDA device, else the CPU. With several GPUs the launcher sets the current one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware has it, else float16 on a GPU and float32 on a CPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Without the instruction a CPU emulates bfloat16, several times slower than float32.
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32  # noqa: SLF001  (no public one)


def fits_in_memory(needed_bytes: int, device: torch.device) -> bool:
    """Whether a GPU has this much free; a CPU is not asked, because its free memory says little."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return needed_bytes <= free
