"""Logs as machines and people read them."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runner.attempt_link import AttemptLink
from runner.errors import UnavailableError
from runner.jobs import JobRecord, WorkerInfo
from runner.logs import JsonFormatter, logging_about
from runner.settings import load_log_format
from runner.store import Store

SECRET = "hf_" + "a" * 30
PROGRAM = f"""
import logging, sys, threading, warnings
from runner.logs import configure_logging, logging_about
from runner.settings import load_log_format

configure_logging(load_log_format(), host="gpu-1", pool="gpu")
log = logging.getLogger("runner.test")
with logging_about("demo-aaaaa", 2):
    try:
        raise ValueError("the token is {SECRET}\\nand more")
    except ValueError:
        log.exception("It failed at %s.", "redis://:{SECRET}@host")
warnings.warn("of a library", stacklevel=1)
thread = threading.Thread(target=lambda: 1 / 0, name="counter")
thread.start()
thread.join()
log.debug("too small a thing")
"""


def run(**environ: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={"PATH": os.environ["PATH"]} | environ, capture_output=True, check=True
    )
    return done.stderr.decode().splitlines()


def test_a_record_is_one_line_of_json_with_host_pool_job_attempt_and_exception_and_without_secrets() -> None:
    before = datetime.now(UTC)

    lines = [json.loads(line) for line in run()]

    failed, warned, ended = lines
    assert timedelta(0) <= datetime.fromisoformat(failed.pop("time")) - before < timedelta(minutes=2)
    assert failed.pop("exception").splitlines()[-2:] == ["ValueError: the token is [redacted]", "and more"]
    assert failed == {
        "level": "ERROR",
        "logger": "runner.test",
        "message": "It failed at redis://[redacted]@host.",
        "host": "gpu-1",
        "pool": "gpu",
        "job": "demo-aaaaa",
        "attempt": 2,
    }
    assert (warned["logger"], warned["job"], warned["attempt"]) == ("py.warnings", None, None)
    assert "of a library" in warned["message"]
    assert (ended["level"], ended["message"]) == ("CRITICAL", "Thread counter ends: ZeroDivisionError")
    assert "ZeroDivisionError: division by zero" in ended["exception"]


@pytest.mark.parametrize("environ", [{"QLORA_LOG_FORMAT": "text"}, {}], ids=["asked for", "on a terminal"])
def test_people_read_lines_that_name_the_job_and_no_secret(environ: dict[str, str]) -> None:
    if environ:
        text = "\n".join(run(**environ))
    else:
        near, far = pty.openpty()
        with subprocess.Popen([sys.executable, "-c", PROGRAM], env={"PATH": os.environ["PATH"]}, stderr=far) as process:
            os.close(far)
            text = read_terminal(near)
            assert process.wait() == 0

    assert "ERROR   runner.test  It failed at redis://[redacted]@host. (demo-aaaaa, attempt 2)" in text
    assert "ValueError: the token is [redacted]" in text
    assert "{" not in text


def read_terminal(near: int) -> str:
    text = b""
    try:
        while piece := os.read(near, 65536):
            text += piece
    except OSError:  # How Linux says that nobody writes there any more.
        pass
    finally:
        os.close(near)
    return text.decode()


def test_an_unknown_format_is_refused_by_name() -> None:
    with pytest.raises(UnavailableError, match="QLORA_LOG_FORMAT='xml'") as caught:
        load_log_format({"QLORA_LOG_FORMAT": "xml"})

    assert "auto, json, text" in str(caught.value.hint)


@pytest.fixture
def json_lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What this process logs meanwhile, as JSON."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter(host="host-a", pool="cpu"))
    logging.getLogger().addHandler(handler)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logging.getLogger().removeHandler(handler)


def test_what_an_attempts_own_threads_log_names_job_and_attempt(
    store: Store,
    submit_job: Callable[..., JobRecord],
    some_worker: WorkerInfo,
    json_lines: Callable[[], list[dict[str, Any]]],
    eventually: Callable[..., None],
) -> None:
    job = submit_job()
    claim = store.claim(job.pool, some_worker)
    assert claim is not None
    store.requeue(claim)

    with logging_about(job.id, claim.job.attempt), AttemptLink(store, claim) as link:
        eventually(lambda: link.lost)

    told = [line for line in json_lines() if "no longer this attempt's" in line["message"]]
    assert {(line["job"], line["attempt"]) for line in told} == {(job.id, 1)}
