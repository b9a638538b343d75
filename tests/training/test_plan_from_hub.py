"""A plan for a base model of a hub: what would be downloaded, and every refusal in words; with a real client."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Hub, running_hub  # type: ignore[import-not-found]  # tests/training is on the path

from runner.planning import make_plan
from runner.settings import RunnerSettings, load_settings
from runner.spec import RunSpec

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.models["team/tiny"] = tiny_model
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def settings(tmp_path: Path) -> RunnerSettings:
    return replace(
        load_settings({}),
        models_root=tmp_path / "models",
        projects_dir=tmp_path / "projects",
        output_root=tmp_path / "outputs",
        state_dir=tmp_path / "state",
    )


@pytest.fixture
def spec(make_spec: Callable[..., RunSpec], settings: RunnerSettings, addition: list[dict[str, Any]]) -> RunSpec:
    return make_spec(settings.projects_dir, addition[:20], base_model="team/tiny")


def test_the_weights_that_are_missing_are_counted_and_none_is_fetched_until_all_are_there(
    hub: Hub, spec: RunSpec, settings: RunnerSettings, tiny_model: Path
) -> None:
    weights = tiny_model / "model.safetensors"

    planned = make_plan(spec, settings)

    assert planned.preflight is not None, planned.checks
    assert planned.preflight.fetch_bytes == weights.stat().st_size
    assert planned.preflight.revision == COMMIT
    assert weights.name not in hub.downloads
    assert planned.time is None
    [disk] = [check for check in planned.checks if check.name == "disk"]
    assert "for the base model" in disk.message

    snapshot = Path(planned.preflight.cache_dir) / "models--team--tiny" / "snapshots" / COMMIT
    shutil.copy(weights, snapshot)
    cached = make_plan(spec, settings, measure=False)

    assert cached.preflight is not None, cached.checks
    assert cached.preflight.fetch_bytes == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model": "team/closed"}, "is gated"),
        ({"revision": "v9"}, "has no revision 'v9'"),
        ({"base_model": "team/other"}, "does not know the base model 'team/other'"),
    ],
    ids=["gated", "revision", "unknown"],
)
def test_a_refusal_of_the_hub_is_a_failed_check(
    changes: dict[str, str], said: str, hub: Hub, spec: RunSpec, settings: RunnerSettings
) -> None:
    hub.models["team/closed"] = hub.models["team/tiny"]
    hub.gated.add("team/closed")
    wrong = spec.model_copy(update={"project": spec.project.model_copy(update=changes)})

    planned = make_plan(wrong, settings)

    assert [(check.name, check.passed) for check in planned.checks] == [("base model", False)]
    assert said in planned.checks[0].message
    assert planned.checks[0].hint
