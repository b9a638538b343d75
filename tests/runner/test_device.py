"""What a host trains on. The answers of `nvidia-smi` are as its documentation shows them: no GPU was at hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.device import describe_device, list_gpus, parse_gpus
from runner.pools import Gpu


def put_on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program that answers as NVIDIA's tool does; this machine may have none."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_host_without_gpu_counts_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert re.fullmatch(r"cpu \(\d+ threads\)", describe_device())


def test_equal_gpus_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h100 = ", NVIDIA H100 80GB HBM3, 81559"
    lines = rf"0, GPU-aa{h100}\n1, GPU-bb{h100}\n2, GPU-cc, NVIDIA L4, 23034\n"
    put_on_the_path(tmp_path, monkeypatch, f"printf '{lines}'")

    assert describe_device() == "2 x NVIDIA H100 80GB HBM3 (80 GiB), NVIDIA L4 (22 GiB)"


def test_a_tool_without_a_driver_means_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_the_path(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")

    assert list_gpus() == ()
    assert describe_device().startswith("cpu (")


@pytest.mark.parametrize(
    ("answer", "gpus"),
    [
        ("0, GPU-aa, NVIDIA L4, 23034\n", (Gpu(index=0, uuid="GPU-aa", name="NVIDIA L4", memory_mib=23034),)),
        # Of a GPU that shares the host's memory.
        ("0, GPU-aa, NVIDIA GB10, [N/A]\n", (Gpu(index=0, uuid="GPU-aa", name="NVIDIA GB10"),)),
        ("1, GPU-bb, Some, New GPU, 1024\n", (Gpu(index=1, uuid="GPU-bb", name="Some, New GPU", memory_mib=1024),)),
        ("Unable to determine the device handle for GPU 0000:01:00.0: Unknown Error\n\n", ()),
    ],
)
def test_the_driver_s_answer_is_read_line_by_line(answer: str, gpus: tuple[Gpu, ...]) -> None:
    assert parse_gpus(answer) == gpus
