from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.child import Spawn
from runner.cli import replay as replay_verb
from runner.device import describe_device
from runner.errors import UsageError
from runner.manifest import find_adapter, find_differences, read_manifest
from runner.provenance import fingerprint_base_model, fingerprint_data, fingerprint_file, git_revision
from runner.settings import RunnerSettings, load_settings
from runner.spec import DatasetEntry, RunSpec
from runner.versions import report_versions

SUMMARY = {
    "rung": "4bit",
    "steps": 4,
    "loss_first": 3.0,
    "loss_last": 0.5,
    "train_s": 1.0,
    "duration_s": 2.0,
    "guard_interceptions": 0,
}

Keep = Callable[..., Path]
Replay = Callable[..., int]


@pytest.fixture
def settings(tmp_path: Path) -> RunnerSettings:
    """A host that has one dataset and one base model."""
    projects_dir, models_root = tmp_path / "projects", tmp_path / "models"
    projects_dir.mkdir()
    (projects_dir / "rows.jsonl").write_text('{"text": "one"}\n')
    base = models_root / "tiny-llama"
    base.mkdir(parents=True)
    (base / "config.json").write_text('{"model_type": "llama"}')
    (base / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    return replace(
        load_settings({}), projects_dir=projects_dir, models_root=models_root, output_root=tmp_path / "outputs"
    )


@pytest.fixture
def keep_adapter(settings: RunnerSettings, run_spec: RunSpec) -> Keep:
    """Write an adapter with the manifest of a run on this host; keywords replace entries of it."""

    def keep(folder: Path, **changed: Any) -> Path:
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        spec = run_spec.model_copy(update={"datasets": {1: DatasetEntry(name="rows", path="rows.jsonl")}})
        versions = report_versions(describe_device())
        rows = settings.projects_dir / "rows.jsonl"
        manifest = {
            "created_at": "2026-11-24T06:00:00+00:00",
            "rung": "4bit",
            "spec": spec.model_dump(mode="json"),
            "git_revision": git_revision(settings.projects_dir),
            "versions": {package.name: package.installed for package in versions.packages}
            | {"python": versions.python},
            "device": versions.device,
            "data": [{"dataset_id": 1, "sha256": fingerprint_file(rows) if rows.exists() else "0" * 64}],
            "base_fingerprint": fingerprint_base_model(settings.models_root / "tiny-llama"),
            "weights_sha256": "00",
            "metrics": {"summary": SUMMARY},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest | changed))
        return folder

    return keep


# --- finding it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "named",
    ["outputs/team/demo/demo-abcde/adapter", "outputs/team/demo/demo-abcde", "outputs/team/demo/demo-abcde/attempt-1"],
)
def test_an_adapter_is_found_by_its_folder_and_by_its_run(named: str, keep_adapter: Keep, tmp_path: Path) -> None:
    job_dir = tmp_path / "outputs" / "team" / "demo" / "demo-abcde"
    adapter = keep_adapter(job_dir / "adapter")
    (job_dir / "attempt-1").mkdir()

    assert find_adapter(str(tmp_path / named), tmp_path / "outputs") == adapter


def test_an_adapter_is_found_by_its_manifest_and_by_the_jobs_id(keep_adapter: Keep, tmp_path: Path) -> None:
    adapter = keep_adapter(tmp_path / "outputs" / "team" / "demo" / "demo-abcde" / "adapter")

    assert find_adapter(str(adapter / "manifest.json"), tmp_path / "elsewhere") == adapter
    assert find_adapter("demo-abcde", tmp_path / "outputs") == adapter


@pytest.mark.parametrize(
    ("named", "expected"), [("demo-fghij", "no finished job"), ("..", "no adapter in"), ("../up", "no file or folder")]
)
def test_a_name_without_an_adapter_says_where_was_looked(
    named: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    with pytest.raises(UsageError, match=expected):
        find_adapter(named, tmp_path / "outputs")


def test_a_file_that_is_no_manifest_is_told_to_be_none(tmp_path: Path) -> None:
    project = tmp_path / "demo.toml"
    project.touch()

    with pytest.raises(UsageError, match=r"demo\.toml is no adapter, and no manifest\.json of one"):
        find_adapter(str(project), tmp_path / "outputs")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"created_at": "yesterday"}'])
def test_what_is_no_manifest_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)

    with pytest.raises(UsageError, match=r"manifest\.json cannot be read as a manifest"):
        read_manifest(tmp_path)


def test_a_manifest_may_say_more_than_is_read(keep_adapter: Keep, tmp_path: Path) -> None:
    manifest = read_manifest(keep_adapter(tmp_path / "adapter", receipt={"new": 1}, tomorrow="something"))

    assert manifest.metrics.summary.steps == 4


# --- comparing it with this host ----------------------------------------------------------------------------------


def test_the_host_that_made_it_differs_in_nothing(keep_adapter: Keep, settings: RunnerSettings, tmp_path: Path) -> None:
    assert find_differences(read_manifest(keep_adapter(tmp_path / "adapter")), settings) == []


def test_other_rows_and_another_base_model_are_grave_and_named(
    keep_adapter: Keep, settings: RunnerSettings, tmp_path: Path
) -> None:
    manifest = read_manifest(keep_adapter(tmp_path / "adapter"))
    (settings.projects_dir / "rows.jsonl").write_text('{"text": "two"}\n')
    (settings.models_root / "tiny-llama" / "model.safetensors").write_bytes(bytes(range(255)) * 400)

    found = find_differences(manifest, settings)

    assert [(one.what, one.grave, one.missing) for one in found] == [
        ("dataset 1 (rows.jsonl)", True, False),
        ("base model tiny-llama", True, False),
    ]
    assert all(one.then != one.here for one in found)


def test_a_folder_of_data_is_compared_file_by_file_and_a_hub_dataset_goes_by_its_commit(
    keep_adapter: Keep, settings: RunnerSettings, run_spec: RunSpec, tmp_path: Path
) -> None:
    folder = settings.projects_dir / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "one"}\n')
    entries = {1: DatasetEntry(name="rows", path="rows"), 2: DatasetEntry(name="more", hub="a/b", revision="0" * 40)}
    spec = run_spec.model_copy(update={"datasets": entries}).model_dump(mode="json")
    data = [{"dataset_id": 1, "sha256": fingerprint_data(folder)}, {"dataset_id": 2, "sha256": "0" * 64}]
    manifest = read_manifest(keep_adapter(tmp_path / "adapter", spec=spec, data=data))

    assert find_differences(manifest, settings) == []
    (folder / ".cache").write_text("not data")
    assert find_differences(manifest, settings) == []
    (folder / "test.jsonl").write_text('{"text": "two"}\n')
    assert [(one.what, one.grave) for one in find_differences(manifest, settings)] == [("dataset 1 (rows)", True)]


def test_what_is_not_here_at_all_is_missing(keep_adapter: Keep, settings: RunnerSettings, tmp_path: Path) -> None:
    manifest = read_manifest(keep_adapter(tmp_path / "adapter"))
    elsewhere = replace(settings, projects_dir=tmp_path / "p", models_root=tmp_path / "m")

    assert [one.missing for one in find_differences(manifest, elsewhere) if one.grave] == [True, True]


def test_other_libraries_another_device_and_another_revision_are_told_but_not_grave(
    keep_adapter: Keep, settings: RunnerSettings, tmp_path: Path
) -> None:
    versions = {"transformers": "1.2.3", "python": "3.99.0"}
    made = keep_adapter(
        tmp_path / "adapter", versions=versions, device="2 x NVIDIA L4 (22 GiB)", git_revision="0123456789abcdef"
    )

    found = find_differences(read_manifest(made), settings)

    assert [one.what for one in found] == ["transformers", "python", "device", "git revision of the projects"]
    assert not any(one.grave for one in found)
    assert str(found[1]).startswith("python: 3.99.0 then, 3.")


def test_changes_that_no_commit_holds_are_told_of_a_folder_and_of_no_other(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        asked = [shutil.which("git") or "git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    projects = tmp_path / "projects"
    projects.mkdir()
    (projects / "demo.toml").write_text("a")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")

    (tmp_path / "elsewhere").write_text("new")
    assert git_revision(projects) == commit
    (projects / "demo.toml").write_text("b")
    assert git_revision(projects) == f"{commit}-dirty"


def test_the_number_of_threads_is_no_other_device(keep_adapter: Keep, settings: RunnerSettings, tmp_path: Path) -> None:
    made = keep_adapter(tmp_path / "adapter", device="cpu (4096 threads)")

    assert find_differences(read_manifest(made), settings) == []


def test_a_folder_in_the_place_of_a_hub_model_is_another_base(
    keep_adapter: Keep, settings: RunnerSettings, tmp_path: Path
) -> None:
    made = keep_adapter(tmp_path / "adapter", base_fingerprint=None)
    spec = json.loads((made / "manifest.json").read_text())["spec"]
    spec["project"]["revision"] = "0123456789abcdef0123456789abcdef01234567"
    hub = keep_adapter(tmp_path / "hub", base_fingerprint=None, spec=spec)

    [found] = find_differences(read_manifest(hub), settings)

    assert found.grave
    assert "commit 0123456789ab of the hub then" in str(found)


# --- the fingerprint of a base model --------------------------------------------------------------------------------


def test_a_changed_byte_of_a_small_weight_file_is_seen_wherever_it_is(settings: RunnerSettings) -> None:
    folder = settings.models_root / "tiny-llama"
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    digests = {fingerprint_base_model(folder)}

    for place in (0, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        digests.add(fingerprint_base_model(folder))

    assert len(digests) == 4


def test_a_large_weight_file_is_sampled_over_its_whole_length(settings: RunnerSettings) -> None:
    folder = settings.models_root / "tiny-llama"
    weights = folder / "model.safetensors"
    size = 1 << 28
    with weights.open("wb") as file:
        file.truncate(size)
    untouched = fingerprint_base_model(folder)

    with weights.open("r+b") as file:
        for start in range(size // 2, size // 2 + (1 << 21), 1 << 16):
            file.seek(start)
            file.write(b"\x01" * (1 << 16))

    assert fingerprint_base_model(folder) != untouched


def test_the_config_and_the_tokenizer_belong_to_the_base_model(settings: RunnerSettings) -> None:
    folder = settings.models_root / "tiny-llama"
    without = fingerprint_base_model(folder)

    (folder / "tokenizer.json").write_text("{}")

    assert fingerprint_base_model(folder) != without


# --- the verb -----------------------------------------------------------------------------------------------------


@pytest.fixture
def replay(settings: RunnerSettings, monkeypatch: pytest.MonkeyPatch, scripted: Callable[[str], Spawn]) -> Replay:
    """Run the verb on this host; the child publishes a copy of `made` as what it trained."""
    monkeypatch.setenv("QLORA_PROJECTS_DIR", str(settings.projects_dir))
    monkeypatch.setenv("QLORA_MODELS_ROOT", str(settings.models_root))
    monkeypatch.setenv("QLORA_OUTPUT_ROOT", str(settings.output_root))

    def run(asked: Path, made: Path, *, accept: bool = False) -> int:
        body = f"import shutil\nshutil.copytree({str(made)!r}, RUN_DIR / 'adapter')\n"
        body += "emit('run_succeeded', summary=SUMMARY, adapter_path='adapter')\nsys.exit(0)"
        arguments = argparse.Namespace(manifest=str(asked), run_dir=None, json=False, accept_differences=accept)
        return replay_verb.run(arguments, scripted(body))

    return run


def test_a_replay_that_comes_out_otherwise_says_how(
    keep_adapter: Keep, replay: Replay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    then = keep_adapter(tmp_path / "then", versions={"trl": "0.1"})
    now = keep_adapter(tmp_path / "now", weights_sha256="11", metrics={"summary": SUMMARY | {"loss_last": 0.25}})

    assert replay(then, now) == 0

    out = capsys.readouterr().out
    assert "⚠️ trl: 0.1 then, " in out
    assert "weights differ from the original's: loss 3 → 0.25 here, 3 → 0.5 then." in out


def test_other_rows_are_refused_unless_they_are_accepted(
    keep_adapter: Keep, replay: Replay, settings: RunnerSettings, tmp_path: Path
) -> None:
    made = keep_adapter(tmp_path / "made")
    (settings.projects_dir / "rows.jsonl").write_text('{"text": "two"}\n')

    with pytest.raises(UsageError, match=r"cannot repeat the run:\n  dataset 1 \(rows.jsonl\): "):
        replay(made, made)
    assert replay(made, made, accept=True) == 0


def test_missing_rows_cannot_be_accepted(
    keep_adapter: Keep, replay: Replay, settings: RunnerSettings, tmp_path: Path
) -> None:
    made = keep_adapter(tmp_path / "made")
    (settings.projects_dir / "rows.jsonl").unlink()

    with pytest.raises(UsageError) as refused:
        replay(made, made, accept=True)

    assert "QLORA_PROJECTS_DIR" in str(refused.value.hint)
