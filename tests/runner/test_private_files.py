"""Files that every program here makes are private, or the group's where the operator says so; never everybody's."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.__main__ import main
from runner.child import Child, Spawn
from runner.errors import UnavailableError
from runner.run_directory import create_attempt
from runner.settings import keep_files_private
from runner.spec import RunSpec


@pytest.fixture(autouse=True)
def _own_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> set[str]:
    """The modes of all files and folders below."""
    return {f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("umask", "expected"), [("", {"700", "600"}), ("027", {"750", "640"}), ("007", {"770", "660"})]
)
def test_a_run_directory_with_all_that_its_child_writes_follows_the_umask(
    tmp_path: Path, run_spec: RunSpec, scripted: Callable[[str], Spawn], umask: str, expected: set[str]
) -> None:
    keep_files_private({"QLORA_UMASK": umask})

    run_directory = create_attempt(tmp_path / "outputs", run_spec, "demo-abcde", 1)
    child: Child = scripted("checkpoint(1)\nsucceed()")(run_directory.path)
    with child:
        for _ in child.events():
            pass
    run_directory.publish()

    assert (run_directory.published_path / "adapter_model.safetensors").is_file()
    assert modes(tmp_path / "outputs") == expected


@pytest.mark.parametrize("umask", ["022", "000", "private", "77a"])
def test_an_umask_that_lets_everybody_read_is_refused(umask: str) -> None:
    with pytest.raises(UnavailableError, match="QLORA_UMASK"):
        keep_files_private({"QLORA_UMASK": umask})


def test_every_verb_of_the_shell_makes_private_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_UMASK", "027")
    assert main(["schema"]) == 0
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").touch()

    assert modes(tmp_path) == {"750", "640"}
    monkeypatch.setenv("QLORA_UMASK", "022")
    assert main(["schema"]) == 1
