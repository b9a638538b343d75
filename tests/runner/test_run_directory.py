from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from runner.errors import UnavailableError
from runner.run_directory import (
    RunDirectory,
    adopt_checkpoint,
    checkpoint_step,
    create_attempt,
    newest_checkpoint,
    open_attempt,
)
from runner.spec import RunSpec


def save_adapter(run_directory: RunDirectory, content: str) -> None:
    run_directory.adapter_path.mkdir()
    (run_directory.adapter_path / "adapter_model.safetensors").write_text(content)


def save_checkpoint(run_directory: RunDirectory, step: int, *, complete: bool = True) -> Path:
    folder = run_directory.path / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if complete:
        (folder / "complete").touch()
    return folder


def test_an_attempt_gets_a_private_folder_with_its_spec(tmp_path: Path, run_spec: RunSpec) -> None:
    run_directory = create_attempt(tmp_path, run_spec, "tiny-abcde", 1)

    assert run_directory.path == tmp_path / "demo" / "tiny-abcde" / "attempt-1"
    assert stat.S_IMODE(run_directory.path.stat().st_mode) & 0o007 == 0
    assert RunSpec.model_validate_json(run_directory.spec_path.read_text()) == run_spec


def test_no_two_attempts_write_into_one_folder(tmp_path: Path, run_spec: RunSpec) -> None:
    first = create_attempt(tmp_path, run_spec, "tiny-abcde", 1)
    second = create_attempt(tmp_path, run_spec, "tiny-abcde", 1)

    assert first.path != second.path
    assert second.path.name == "attempt-2"


def test_a_folder_on_the_way_that_is_a_link_is_refused(tmp_path: Path, run_spec: RunSpec) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = tmp_path / "outputs"
    root.mkdir()
    (root / "demo").symlink_to(elsewhere)

    with pytest.raises(UnavailableError, match="symbolic link"):
        create_attempt(root, run_spec, "tiny-abcde", 1)

    assert list(elsewhere.iterdir()) == []


def test_the_root_itself_may_be_a_link(tmp_path: Path, run_spec: RunSpec) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")

    assert create_attempt(tmp_path / "outputs", run_spec, "tiny-abcde", 1).path.is_dir()


@pytest.mark.parametrize("job_id", ["../up", "a/b", "", "."])
def test_a_job_id_that_is_no_plain_name_is_refused(tmp_path: Path, run_spec: RunSpec, job_id: str) -> None:
    with pytest.raises(UnavailableError):
        create_attempt(tmp_path, run_spec, job_id, 1)


def test_a_root_that_cannot_be_written_says_what_to_check(tmp_path: Path, run_spec: RunSpec) -> None:
    (tmp_path / "outputs").write_text("a file, not a folder")

    with pytest.raises(UnavailableError, match="QLORA_OUTPUT_ROOT"):
        create_attempt(tmp_path / "outputs", run_spec, "tiny-abcde", 1)


def test_attempts_count_on_in_a_folder_that_is_opened_again(tmp_path: Path, run_spec: RunSpec) -> None:
    names = [open_attempt(tmp_path / "job", run_spec).path.name for _ in range(3)]

    assert names == ["attempt-1", "attempt-2", "attempt-3"]


def test_the_newest_checkpoint_is_the_complete_one_with_most_steps(tmp_path: Path, run_spec: RunSpec) -> None:
    first = open_attempt(tmp_path, run_spec)
    second = open_attempt(tmp_path, run_spec)
    save_checkpoint(first, 9)
    newest = save_checkpoint(first, 100)
    save_checkpoint(second, 30)
    save_checkpoint(second, 200, complete=False)

    assert newest_checkpoint(tmp_path) == newest
    assert checkpoint_step(newest) == 100


def test_a_job_without_checkpoints_has_none(tmp_path: Path, run_spec: RunSpec) -> None:
    assert open_attempt(tmp_path, run_spec).newest_checkpoint() is None


def test_publishing_moves_the_adapter_to_the_jobs_folder(tmp_path: Path, run_spec: RunSpec) -> None:
    run_directory = open_attempt(tmp_path, run_spec)
    save_adapter(run_directory, "weights")

    published = run_directory.publish()

    assert published == tmp_path / "adapter"
    assert (published / "adapter_model.safetensors").read_text() == "weights"
    assert not run_directory.adapter_path.exists()


def test_publishing_replaces_a_former_adapter_and_leaves_nothing_else(tmp_path: Path, run_spec: RunSpec) -> None:
    for content in ("old", "new"):
        run_directory = open_attempt(tmp_path, run_spec)
        save_adapter(run_directory, content)
        run_directory.publish()

    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "attempt-1", "attempt-2"]


def test_publishing_clears_up_after_an_attempt_that_was_cut_off_in_between(tmp_path: Path, run_spec: RunSpec) -> None:
    cut_off = open_attempt(tmp_path, run_spec)
    save_adapter(cut_off, "cut off")
    cut_off.publish().rename(tmp_path / ".former-adapter")

    run_directory = open_attempt(tmp_path, run_spec)
    save_adapter(run_directory, "new")
    published = run_directory.publish()

    assert (published / "adapter_model.safetensors").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "attempt-1", "attempt-2"]


def test_publishing_without_an_adapter_keeps_the_former_one(tmp_path: Path, run_spec: RunSpec) -> None:
    first = open_attempt(tmp_path, run_spec)
    save_adapter(first, "old")
    first.publish()

    with pytest.raises(UnavailableError, match="left no adapter"):
        open_attempt(tmp_path, run_spec).publish()

    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_text() == "old"


def test_a_checkpoint_that_is_taken_over_is_on_the_disk_before_it_can_be_found(
    tmp_path: Path, run_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(create_attempt(tmp_path, run_spec, "tiny-abcde", 1), 3)
    retry = create_attempt(tmp_path, run_spec, "tiny-fghij", 1)
    taken_over, fsync = retry.job_dir / "attempt-0", os.fsync
    before: set[int] = set()

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        if not taken_over.exists():
            before.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", flush)
    adopt_checkpoint(retry, "tiny-abcde")

    assert retry.newest_checkpoint() == taken_over / "checkpoints" / "checkpoint-3"
    assert {path.stat().st_ino for path in (taken_over, *taken_over.rglob("*"))} <= before
