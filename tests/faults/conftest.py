"""Starts all parts as real processes: Valkey, workspace, bot and two workers of one pool."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bot.local.demo import build_base_model
from bot.local.parts import running_parts, wait_for_file
from bot.workspace.client import WorkspaceClient
from runner.settings import load_settings
from runner.store import Store
from tests.faults.stack import PARTS, REPOSITORY, Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The product on a folder of its own; leases are short so that a lost host is noticed soon."""
    state_dir = tmp_path_factory.mktemp("state")
    settings = load_settings(
        {"QLORA_STATE_DIR": str(state_dir), "QLORA_PROJECTS_DIR": str(REPOSITORY / "projects"), "QLORA_LEASE_S": "6"}
    )
    with running_parts(settings, PARTS) as parts:
        build_base_model(settings)
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
