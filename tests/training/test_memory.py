import sys
from pathlib import Path

import pytest
import torch

from runner.training.memory import MemoryMeter, free_bytes, held_bytes, release_memory

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(sys.platform != "linux", reason="a CPU's memory is read from Linux"),
]

CPU = torch.device("cpu")
SIZE = 100_000_000
SLACK = 20_000_000


def filled() -> torch.Tensor:
    return torch.ones(SIZE, dtype=torch.uint8)


def test_a_peak_that_is_gone_again_was_seen() -> None:
    release_memory()
    with MemoryMeter(CPU) as meter:
        taken = filled()
        assert meter.peak_bytes is not None
        del taken
        release_memory()
    assert abs(meter.peak_bytes - SIZE) < SLACK
    assert meter.now_bytes is not None
    assert meter.now_bytes < SLACK
    assert "resident memory" in meter.method


def test_what_is_kept_counts_as_held() -> None:
    release_memory()
    with MemoryMeter(CPU) as meter:
        taken = filled()
    assert meter.now_bytes is not None
    assert abs(meter.now_bytes - len(taken)) < SLACK


def test_a_file_that_stays_mapped_counts(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"1" * SIZE)
    with MemoryMeter(CPU) as meter:
        mapped = torch.from_file(str(path), size=SIZE, dtype=torch.uint8)
        assert int(mapped.max()) == ord("1")
    assert meter.peak_bytes is not None
    assert abs(meter.peak_bytes - SIZE) < SLACK


def test_a_host_has_memory_left_and_this_process_holds_some() -> None:
    assert (free_bytes(CPU) or 0) > 0
    assert (held_bytes(CPU) or 0) > 0
