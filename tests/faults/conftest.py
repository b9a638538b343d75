"""Starts all parts as real processes: Valkey, workspace, bot and two workers of one pool."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest

from bot.local.demo import BASE_MODEL, build_base_model
from bot.local.parts import running_parts, wait_for_file
from bot.workspace.client import WorkspaceClient
from runner.settings import load_settings
from runner.store import Store
from tests.faults.stack import PARTS, REPOSITORY, Stack
from tests.training.model_folders import copy_tokenizer
from tests.training.stubborn_models import write_model

STUBBORN_PROJECT = """
name = "stubborn"
base_model = "value-reader"
output_directory = "stubborn"
[[traits]]
trait_type = "arithmetic"
[[traits.datasets]]
dataset_id = 1
percentage = 10
[training]
max_steps = 2
max_length = 64
[compute]
pool = "local"
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The product on a folder of its own; leases are short so that a lost host is noticed soon.

    Beside the shipped projects it has `stubborn`, whose model bears neither 4-bit nor 8-bit weights, and `homeless`,
    whose model is not there.
    """
    state_dir = tmp_path_factory.mktemp("state")
    projects_dir = state_dir / "projects"
    shutil.copytree(REPOSITORY / "projects", projects_dir)
    (projects_dir / "stubborn.toml").write_text(STUBBORN_PROJECT)
    missing = STUBBORN_PROJECT.replace("stubborn", "homeless").replace("value-reader", "nowhere-to-be-found")
    (projects_dir / "homeless.toml").write_text(missing)
    settings = load_settings(
        {"QLORA_STATE_DIR": str(state_dir), "QLORA_PROJECTS_DIR": str(projects_dir), "QLORA_LEASE_S": "6"}
    )
    training_tests = REPOSITORY / "tests" / "training"
    with pytest.MonkeyPatch.context() as patch:
        # The training processes learn the stubborn model's class at start, as a team's plugin would teach them.
        patch.setenv("PYTHONPATH", f"{training_tests / 'startup'}{os.pathsep}{training_tests}")
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Three trainings and more share the cores of a machine that runs tests.
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        with running_parts(settings, PARTS) as parts:
            build_base_model(settings)
            write_model(settings.models_root / "value-reader", "value-reader")
            copy_tokenizer(settings.models_root / BASE_MODEL, settings.models_root / "value-reader")
            wait_for_file(state_dir / "workspace.json", parts)
            wait_for_file(state_dir / "redis.json", parts)
            store = Store.connect(json.loads((state_dir / "redis.json").read_text())["url"])
            running = Stack(settings, WorkspaceClient.discover(state_dir), store, parts)
            running.wait(
                lambda: running.workspace.status()["connections"] > 0 and len(store.workers("local")) == 2,
                "the bot and both workers are ready",
            )
            yield running
            store.close()
