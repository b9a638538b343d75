"""The device that this process trains on, the precision it computes in, and the most memory it has held there."""

from __future__ import annotations

from pathlib import Path

import torch

from runner.errors import TrainingError


def choose_device() -> torch.device:
    """The current CUDA device, which `ranks.join` sets to one of each rank's own, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_compute_dtype(device: torch.device, asked: str = "auto") -> torch.dtype:
    """bfloat16 where the hardware has it, else float16 on a GPU and float32 on a CPU, unless another is asked for.

    Args:
        device: What computes.
        asked: `quantization.bnb_4bit_compute_dtype`.

    Raises:
        TrainingError: The device cannot compute in what was asked for (`compute-dtype`).
    """
    if asked == "float16" and device.type == "cpu":
        raise TrainingError(
            "quantization.bnb_4bit_compute_dtype = 'float16' needs a GPU: on a CPU gradients in it run over.",
            hint="Use 'auto', 'bfloat16' or 'float32', or a pool with GPUs.",
            code="compute-dtype",
        )
    if asked != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[asked]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # Without the instruction a CPU emulates bfloat16, several times slower than float32.
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32  # noqa: SLF001  (no public one)


def describe(device: torch.device) -> str:
    """Name a device for people: `cpu (2 threads)`, or the GPU's name and memory."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'' if threads == 1 else 's'})"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"


def peak_bytes(device: torch.device) -> int:
    """Most that this process has held so far: PyTorch's allocations on a GPU, its resident set on a CPU.

    Not `ru_maxrss`, which counts the process that started this one, too.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _kilobytes(Path("/proc/self/status"), "VmHWM") * 1024


def _kilobytes(path: Path, name: str) -> int:
    (line,) = [line for line in path.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])
