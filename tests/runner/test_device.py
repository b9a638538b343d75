from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.device import describe_device


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
    lines = r"NVIDIA H100 80GB HBM3, 81559\nNVIDIA H100 80GB HBM3, 81559\nNVIDIA L4, 23034\n"
    put_on_the_path(tmp_path, monkeypatch, f"printf '{lines}'")

    assert describe_device() == "2 x NVIDIA H100 80GB HBM3 (80 GiB), NVIDIA L4 (22 GiB)"


def test_a_tool_without_a_driver_means_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_the_path(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")

    assert describe_device().startswith("cpu (")
