"""Weights in a format that can run code while it is read: planted, named by an index, and never opened."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loads import failing_load  # type: ignore[import-not-found]  # see conftest

from runner.errors import ModelFilesError
from runner.spec import RunSpec

pytestmark = pytest.mark.training


class _Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self._folder),)


def _only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _named_by_the_index(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _under_the_other_name(folder: Path) -> None:
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")


def _outside_the_folder(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("plant", [_only, _named_by_the_index, _under_the_other_name, _outside_the_folder])
def test_pickled_or_foreign_weights_are_refused_unread(
    make: Callable[..., RunSpec], tiny_model: Path, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    folder, trap = tmp_path / "models" / "tiny", tmp_path / "was-run"
    shutil.copytree(tiny_model, folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(trap)))
    plant(folder)

    error, _ = failing_load(make(), tmp_path / "models")

    assert isinstance(error, ModelFilesError)
    assert not trap.exists()
    # The trap is one: what it is made of does run when it is read.
    trap.mkdir()
    with pytest.raises(FileExistsError):
        pickle.loads(pickle.dumps(_Trap(trap)))  # noqa: S301
