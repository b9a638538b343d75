from pathlib import Path
from typing import Any

import pytest

from runner.spec import DatasetEntry, RunSpec
from runner.training.pins import with_earlier_pins

pytestmark = pytest.mark.training

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def submitted(make_spec: Any, tmp_path: Path) -> RunSpec:
    """A job with a hub model and a hub dataset, neither pinned."""
    spec: RunSpec = make_spec(tmp_path / "projects", [{"text": "a"}])
    return spec.model_copy(update={"datasets": {1: DatasetEntry(name="sums", hub="acme/sums", revision="main")}})


def attempt(job_dir: Path, number: int, text: str | None = None) -> Path:
    folder = job_dir / f"attempt-{number}"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "spec.json").write_text(text)
    return folder


def pinned(spec: RunSpec, commit: str) -> RunSpec:
    entry = spec.datasets[1].model_copy(update={"revision": commit})
    project = spec.project.model_copy(update={"revision": commit})
    return spec.model_copy(update={"project": project, "datasets": {1: entry}})


def test_a_later_attempt_reads_what_the_one_before_it_read(submitted: RunSpec, tmp_path: Path) -> None:
    attempt(tmp_path, 9, pinned(submitted, FIRST).model_dump_json())
    attempt(tmp_path, 10, pinned(submitted, SECOND).model_dump_json())
    attempt(tmp_path, 11, '{"project": ')  # killed while it wrote
    attempt(tmp_path, 12)

    assert with_earlier_pins(submitted, attempt(tmp_path, 13)) == pinned(submitted, SECOND)


def test_a_first_attempt_and_a_run_of_its_own_stay_as_they_are(submitted: RunSpec, tmp_path: Path) -> None:
    attempt(tmp_path, 2, pinned(submitted, FIRST).model_dump_json())
    (tmp_path / "run").mkdir()

    assert with_earlier_pins(submitted, attempt(tmp_path, 1)) == submitted
    assert with_earlier_pins(submitted, tmp_path / "run") == submitted


def test_an_attempt_that_ended_before_it_looked_at_the_hub_loses_no_pin(submitted: RunSpec, tmp_path: Path) -> None:
    attempt(tmp_path, 1, pinned(submitted, FIRST).model_dump_json())
    attempt(tmp_path, 2, submitted.model_dump_json())

    assert with_earlier_pins(submitted, attempt(tmp_path, 3)) == pinned(submitted, FIRST)


def test_a_dataset_that_joins_later_leaves_the_others_pinned(submitted: RunSpec, tmp_path: Path) -> None:
    attempt(tmp_path, 1, pinned(submitted, FIRST).model_dump_json())
    asked = {"datasets": submitted.datasets | {2: DatasetEntry(name="more", hub="acme/more")}}

    now = with_earlier_pins(submitted.model_copy(update=asked), attempt(tmp_path, 2))

    assert [entry.revision for entry in now.datasets.values()] == [FIRST, None]


def test_a_commit_that_the_project_names_stands(submitted: RunSpec, tmp_path: Path) -> None:
    attempt(tmp_path, 1, pinned(submitted, FIRST).model_dump_json())

    assert with_earlier_pins(pinned(submitted, SECOND), attempt(tmp_path, 2)) == pinned(submitted, SECOND)


def test_a_pin_is_of_one_place(submitted: RunSpec, tmp_path: Path) -> None:
    attempt(tmp_path, 1, pinned(submitted, FIRST).model_dump_json())
    elsewhere = submitted.model_copy(
        update={
            "project": submitted.project.model_copy(update={"base_model": "acme/other"}),
            "datasets": {1: DatasetEntry(name="sums", hub="acme/other", revision="main")},
        }
    )

    assert with_earlier_pins(elsewhere, attempt(tmp_path, 2)) == elsewhere
