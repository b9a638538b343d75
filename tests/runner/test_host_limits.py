"""A host's own limits, held against specs that nobody else has checked."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.errors import HostRefusesError
from runner.host_limits import check_host_limits
from runner.jobs import JobState
from runner.settings import RunnerSettings, load_settings
from runner.spec import DatasetEntry, RunSpec
from runner.store import Store
from runner.supervisor import AttemptEnd, run_attempt

Changed = Callable[..., RunSpec]


@pytest.fixture
def host(tmp_path: Path) -> RunnerSettings:
    """A host with one local model and one data file, and a secret beside its folders."""
    for folder in ("models/tiny-llama", "projects/data", "outputs", "secret"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "projects" / "data" / "sums.jsonl").write_text("{}\n")
    (tmp_path / "secret" / "keys.jsonl").write_text("{}\n")
    return dataclasses.replace(
        load_settings({"QLORA_STATE_DIR": str(tmp_path)}), projects_dir=tmp_path / "projects", host="gpu-1"
    )


@pytest.fixture
def changed(run_spec: RunSpec) -> Changed:
    """The spec with one local data file and other settings of the project."""

    def change(entry: DatasetEntry | None = None, **project: Any) -> RunSpec:
        entry = entry or DatasetEntry(name="sums", path="data/sums.jsonl")
        return run_spec.model_copy(
            update={"project": run_spec.project.model_copy(update=project), "datasets": {1: entry}}
        )

    return change


def refusal(spec: RunSpec, host: RunnerSettings) -> str:
    with pytest.raises(HostRefusesError) as caught:
        check_host_limits(spec, host)
    assert caught.value.code == "host-refuses"
    return caught.value.message


def test_what_stays_in_the_hosts_folders_is_let_through(changed: Changed, host: RunnerSettings) -> None:
    check_host_limits(changed(), host)
    check_host_limits(changed(base_model="someone/on-the-hub"), host)
    check_host_limits(changed(DatasetEntry(name="x", path="data/not-there.jsonl")), host)


def test_models_and_hub_datasets_that_the_host_does_not_name_are_refused_all_at_once(
    changed: Changed, host: RunnerSettings
) -> None:
    strict = dataclasses.replace(host, allow_models=("meta-llama/*", "in-house-*"), allow_datasets=("us/*",))
    hub = DatasetEntry(name="x", hub="them/data")

    message = refusal(changed(hub, base_model="them/model"), strict)

    assert "Host gpu-1 refuses this job" in message
    assert "QLORA_ALLOW_MODELS (meta-llama/*, in-house-*) does not name the base model 'them/model'" in message
    assert "QLORA_ALLOW_DATASETS (us/*) does not name dataset 1, 'them/data'" in message
    check_host_limits(changed(DatasetEntry(name="x", hub="us/data"), base_model="meta-llama/Llama-3.2-3B"), strict)


def test_the_environment_names_what_is_allowed() -> None:
    settings = load_settings({"QLORA_ALLOW_MODELS": "a/*, b ,", "QLORA_ALLOW_DATASETS": ""})

    assert settings.allow_models == ("a/*", "b")
    assert settings.allow_datasets == ("*",)


def test_a_model_folder_that_leaves_the_models_root_is_refused(
    changed: Changed, host: RunnerSettings, tmp_path: Path
) -> None:
    (host.models_root / "linked").symlink_to(tmp_path / "secret")

    assert "leaves QLORA_MODELS_ROOT" in refusal(changed(base_model="linked"), host)


@pytest.mark.parametrize("path", ["linked.jsonl", "folder", "round.jsonl"])
def test_data_that_leaves_the_projects_folder_are_refused(
    changed: Changed, host: RunnerSettings, tmp_path: Path, path: str
) -> None:
    (host.projects_dir / "linked.jsonl").symlink_to(tmp_path / "secret" / "keys.jsonl")
    (host.projects_dir / "folder" / "deep").mkdir(parents=True)
    (host.projects_dir / "folder" / "deep" / "linked").symlink_to(tmp_path / "secret")
    (host.projects_dir / "round.jsonl").symlink_to(host.projects_dir / "round.jsonl")

    assert "leaves QLORA_PROJECTS_DIR" in refusal(changed(DatasetEntry(name="x", path=path)), host)


def test_an_output_directory_that_leaves_the_output_root_is_refused(
    changed: Changed, host: RunnerSettings, tmp_path: Path
) -> None:
    (host.output_root / "demo").symlink_to(tmp_path / "secret")

    assert "leaves QLORA_OUTPUT_ROOT" in refusal(changed(), host)


def test_roots_that_are_links_themselves_are_followed(changed: Changed, host: RunnerSettings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(tmp_path / "projects")

    check_host_limits(changed(), dataclasses.replace(host, projects_dir=tmp_path / "elsewhere"))


def test_a_job_that_the_host_refuses_fails_before_a_child_or_a_folder_is_made(
    store: Store, changed: Changed, host: RunnerSettings, some_worker: Any
) -> None:
    job = store.submit(changed(base_model="them/model"), submitted_by="U1", origin={}, request_id="r")
    claim = store.claim("cpu", some_worker)
    assert claim is not None

    def spawn(_: Path) -> Any:
        raise AssertionError("no child may be started")

    strict = dataclasses.replace(host, allow_models=("meta-llama/*",))
    end = run_attempt(store, claim, strict, stopping=threading.Event(), spawn=spawn)

    assert end is AttemptEnd.FAILED
    failed = store.get(job.id)
    assert (failed.state, failed.error_code) == (JobState.FAILED, "host-refuses")
    assert "QLORA_ALLOW_MODELS" in str(failed.error_message)
    assert list(host.output_root.iterdir()) == []
