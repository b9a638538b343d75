"""Pushes to a model hub that really listens, by the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, running_hub  # type: ignore[import-not-found]  # beside this file; mypy names it by its path

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]

TOKEN = "a-token-of-no-known-shape-0123456789"

Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def push(hub: Hub, tmp_path: Path) -> Push:
    """Run the verb against the hub, with the host's token."""

    def run(*words: str, token: str | None = TOKEN, endpoint: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": endpoint or hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
        # This hub speaks the older of the two ways to upload large files.
        environment["HF_HUB_DISABLE_XET"] = "1"
        if token is not None:
            environment["HF_TOKEN"] = token
        command = [sys.executable, "-m", "runner", "push", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


def test_an_adapter_arrives_whole_in_a_private_repository_and_the_token_stays_with_the_hub(
    push: Push, hub: Hub, finished_child: Any
) -> None:
    done = push(str(finished_child.run_dir), "team/demo")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.url}/team/demo (private)"
    assert hub.repositories == {"team/demo": True}
    adapter = finished_child.run_dir / "adapter"
    assert hub.files == {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert hub.messages[0].startswith("test: adapter, trained 20")
    # The weights went to another host, which must not see the token.
    assert list(hub.stored.values()) == [(adapter / "adapter_model.safetensors").read_bytes()]
    assert hub.storage_tokens == {None}
    assert f"Bearer {TOKEN}" in hub.tokens
    assert TOKEN not in done.stdout + done.stderr


def test_a_public_repository_has_to_be_asked_for(push: Push, hub: Hub, finished_child: Any) -> None:
    adapter = str(finished_child.run_dir / "adapter")
    hub.repositories["team/open"] = False

    refused = push(adapter, "team/open")
    assert refused.returncode == 2
    assert "everybody can read it" in refused.stderr
    assert hub.files == {}

    asked = push(adapter, "team/open", "--public")
    assert (asked.returncode, asked.stdout.splitlines()[-1]) == (0, f"{hub.url}/team/open (public)")
    assert "adapter_config.json" in hub.files


def test_a_refusal_says_what_to_do_and_never_the_token(push: Push, hub: Hub, finished_child: Any) -> None:
    hub.refuse = True

    done = push(str(finished_child.run_dir), "others/demo")

    assert done.returncode == 1
    assert "does not let this host's token write to others/demo" in done.stderr
    assert TOKEN not in done.stderr


def test_a_hub_that_does_not_answer_is_named(push: Push, finished_child: Any) -> None:
    done = push(str(finished_child.run_dir), "team/demo", endpoint="http://127.0.0.1:1")

    assert done.returncode == 1
    assert "The upload to http://127.0.0.1:1 failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_token_nothing_is_sent(push: Push, hub: Hub, finished_child: Any) -> None:
    done = push(str(finished_child.run_dir), "team/demo", token=None)

    assert done.returncode == 1
    assert "HF_TOKEN" in done.stderr
    assert hub.tokens == set()


def test_a_name_that_is_none_is_a_usage_error(push: Push, finished_child: Any) -> None:
    done = push(str(finished_child.run_dir), "team/demo/adapter")

    assert done.returncode == 2
    assert "Write owner/name." in done.stderr
