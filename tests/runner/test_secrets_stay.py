"""A secret in an error or a log leaves the host by no way: record, events, logs, thread, shell."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.render.message import Message
from bot.render.thread import render_milestone
from bot.story import Story, tell
from runner.__main__ import describe_error, main
from runner.child import Spawn
from runner.errors import SpecError, UnavailableError
from runner.jobs import JobRecord, WorkerInfo
from runner.projects import load_project
from runner.settings import RunnerSettings
from runner.store import Store
from runner.supervisor import run_attempt
from tests.secrets import SECRETS

FAILS_LOUDLY = """
emit("phase_started", phase="model")
emit("rung_failed", failed={{"rung": "4bit", "error_class": "OSError", "reason": {planted!r}}}, next_rung="8bit")
emit("run_failed", code="internal", message="it said " + {planted!r}, hint={planted!r})
"""
DIES_SILENTLY = """
OUT.write({planted!r} + "\\n")
sys.stderr.write("Traceback:\\n" + "x" * 40 + " " + {planted!r} + "\\n" + "y " * 470)
sys.stderr.flush()
os._exit(7)
"""


@pytest.fixture
def host(settings: RunnerSettings, tmp_path: Path) -> RunnerSettings:
    return dataclasses.replace(settings, projects_dir=tmp_path)


def everything(store: Store) -> str:
    """All that Redis holds, as text."""
    held = []
    for key in store.client.scan_iter():
        match store.client.type(key):
            case "hash":
                held.append(str(store.client.hgetall(key)))
            case "list":
                held.append(str(store.client.lrange(key, 0, -1)))
            case "string":
                held.append(str(store.client.get(key)))
    return "\n".join(held)


def thread_of(store: Store, job: JobRecord) -> list[Message]:
    story, messages = Story(job), []
    for stored in store.events(job.id):
        message = render_milestone(story, stored)
        messages += [] if message is None else [message]
        story = tell(story, stored)
    return messages


@pytest.fixture
def attempt(
    store: Store,
    submit_job: Callable[..., JobRecord],
    some_worker: WorkerInfo,
    host: RunnerSettings,
    scripted: Callable[[str], Spawn],
) -> Callable[[str], JobRecord]:
    """Run a job with a scripted child to its end."""

    def run(script: str) -> JobRecord:
        job = submit_job()
        claim = store.claim("cpu", some_worker)
        assert claim is not None
        run_attempt(store, claim, host, stopping=threading.Event(), spawn=scripted(script))
        return store.get(job.id)

    return run


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("script", [FAILS_LOUDLY, DIES_SILENTLY], ids=["told", "printed"])
def test_what_a_child_tells_or_prints_is_clean_wherever_it_arrives(
    store: Store, attempt: Callable[[str], JobRecord], caplog: pytest.LogCaptureFixture, script: str, name: str
) -> None:
    caplog.set_level(logging.DEBUG)
    planted, secret = SECRETS[name]

    failed = attempt(script.format(planted=planted))

    assert "[redacted]" in f"{failed.error_message} {failed.error_hint}"
    assert secret not in everything(store)
    assert secret not in caplog.text
    assert secret not in str(thread_of(store, failed))


@pytest.mark.parametrize("name", SECRETS)
def test_an_error_is_clean_on_a_terminal(name: str) -> None:
    planted, secret = SECRETS[name]

    assert secret not in describe_error(UnavailableError(f"No answer from {planted}", hint=planted))


def test_a_log_is_clean_on_a_terminal(
    attempt: Callable[[str], JobRecord],
    host: RunnerSettings,
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", valkey_url)
    monkeypatch.setenv("QLORA_OUTPUT_ROOT", str(host.output_root))
    job = attempt("".join(f"print({planted!r})\n" for planted, _ in SECRETS.values()) + "succeed()")

    assert main(["logs", job.id]) == 0

    shown = capsys.readouterr().out
    assert "[redacted]" in shown
    assert [name for name, (_, secret) in SECRETS.items() if secret in shown] == []


@pytest.mark.parametrize("where", ["project", "override", "catalog"])
def test_a_project_that_holds_a_secret_is_refused_without_repeating_it(folder: Path, where: str) -> None:
    planted, secret = SECRETS["hugging face"]
    overrides = {"evaluation.prompts": f'["{planted}"]'} if where == "override" else {}
    if where == "project":
        with (folder / "good.toml").open("a") as file:
            file.write(f'\n[evaluation]\nprompts = ["hello", "{planted}"]\n')
    if where == "catalog":
        catalog = folder / "datasets.toml"
        catalog.write_text(catalog.read_text().replace('name = "sums"', f'name = "sums"\ndescription = "{planted}"'))

    with pytest.raises(SpecError) as caught:
        load_project(folder, "good", overrides)

    (problem,) = caught.value.problems
    assert "looks like a token" in problem.message
    assert problem.path == {"catalog": "1.description"}.get(where, "evaluation.prompts[1]").replace(
        "[1]", "[0]" if where == "override" else "[1]"
    )
    assert secret not in describe_error(caught.value)
