import pytest
import torch

from runner.training.accelerator import choose_compute_dtype, choose_device, fits_in_memory

pytestmark = pytest.mark.training

CPU = torch.device("cpu")


def test_the_device_is_a_gpu_where_there_is_one() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_only_where_it_has_the_instruction(
    monkeypatch: pytest.MonkeyPatch, supported: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert choose_compute_dtype(CPU) is expected


def test_a_cpu_is_never_refused_for_its_memory() -> None:
    assert fits_in_memory(2**62, CPU)


@pytest.mark.parametrize(("needed", "fits"), [(100, True), (101, False)])
def test_a_gpu_is_asked_for_its_free_memory(monkeypatch: pytest.MonkeyPatch, needed: int, fits: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    assert fits_in_memory(needed, torch.device("cuda", 0)) is fits
