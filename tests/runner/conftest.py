"""Scripted children, a projects folder, and a host's settings.

A scripted child is a small Python file that stands where the training would, and speaks its protocol.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import settings as hypothesis_settings

from runner.canary import TryOut
from runner.child import Child, Spawn
from runner.errors import SpecError
from runner.process_group import EVENTS_FD
from runner.projects import load_project
from runner.settings import RunnerSettings, load_settings
from runner.store import Store
from tests.runner.worker_processes import Workers, worker_processes

# For `make chaos`: pytest --hypothesis-profile=chaos
hypothesis_settings.register_profile("chaos", max_examples=500, stateful_step_count=100, print_blob=True)

PROLOGUE = '''
import json, os, signal, subprocess, sys, time
from pathlib import Path

RUN_DIR = Path(sys.argv[1])
assert sys.argv[2] == "--events-fd"
OUT = os.fdopen(int(sys.argv[3]), "w", buffering=1)
SUMMARY = {"rung": "4bit", "steps": 4, "loss_first": 3.0, "loss_last": 0.5, "train_s": 1.0, "duration_s": 2.0,
           "guard_interceptions": 0}

def emit(kind, **fields):
    OUT.write(json.dumps({"kind": kind, **fields}) + "\\n")

def checkpoint(step):
    folder = RUN_DIR / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "complete").touch()
    emit("checkpoint_saved", step=step, path=str(folder))

def metrics(step, total=100):
    emit("metrics_logged", step=step, total_steps=total, epoch=1.0, loss=1.0, learning_rate=0.1, tokens_per_s=9.0,
         eta_s=1.0)

def succeed(content="weights"):
    (RUN_DIR / "adapter").mkdir()
    (RUN_DIR / "adapter" / "adapter_model.safetensors").write_text(content)
    emit("run_succeeded", summary=SUMMARY, adapter_path=str(RUN_DIR / "adapter"))
    sys.exit(0)

def stop_at_the_next_step():
    def stop(*_):
        global STOPPING
        STOPPING = True
    globals()["STOPPING"] = False
    signal.signal(signal.SIGTERM, stop)

def train(until=10**9, pause=0.02):
    """Steps until `until`; ends with a checkpoint when asked to stop."""
    step = 0
    emit("phase_started", phase="training")
    while step < until:
        step += 1
        time.sleep(pause)
        metrics(step)
        if STOPPING:
            checkpoint(step)
            emit("run_interrupted", step=step, checkpoint=str(RUN_DIR / "checkpoints" / f"checkpoint-{step}"))
            sys.exit(3)
'''


FakeDriver = Callable[..., Path]


@pytest.fixture
def fake_driver(tmp_path: Path) -> FakeDriver:
    """Stand in for `nvidia-smi`, for machines without a GPU: make a folder for PATH that holds a program of that name.

    It answers with what the files `gpu` and `compute-apps` in that folder say at that moment.
    """

    def make(*memory_mib: int) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="driver-", dir=tmp_path))
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nsubject=${{1#--query-}}\nexec cat {folder}/${{subject%%=*}}\n")
        program.chmod(0o755)
        lines = [f"{n}, GPU-{folder.name}-{n}, NVIDIA L4, {memory}\n" for n, memory in enumerate(memory_mib)]
        (folder / "gpu").write_text("".join(lines))
        (folder / "compute-apps").touch()
        return folder

    return make


Eventually = Callable[..., None]


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """Wait until a condition holds; fail when it does not in time."""

    def wait(condition: Callable[[], object], *, within_s: float = 20.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come to hold in time"
            time.sleep(0.02)

    return wait


IsGone = Callable[[int], bool]


@pytest.fixture(scope="session")
def is_gone() -> IsGone:
    """Whether a process runs no more; one that nobody has collected yet does not."""

    def look(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return look


@pytest.fixture
def child_script(tmp_path: Path) -> Callable[[str], Path]:
    """Write a scripted child to a file; the prologue above is in its scope."""

    def write(body: str) -> Path:
        path = tmp_path / f"child-{time.monotonic_ns()}.py"
        path.write_text(PROLOGUE + "\nstop_at_the_next_step()\n" + textwrap.dedent(body))
        return path

    return write


@pytest.fixture
def scripted(child_script: Callable[[str], Path]) -> Callable[[str], Spawn]:
    """Make a `spawn` out of a scripted child."""

    def make(body: str) -> Spawn:
        script = child_script(body)

        def spawn(run_dir: Path) -> Child:
            return Child(
                [sys.executable, str(script), str(run_dir), "--events-fd", str(EVENTS_FD)],
                run_dir,
                environ={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"},
            )

        return spawn

    return make


Working = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def working(settings: RunnerSettings, scripted: Callable[[str], Spawn]) -> Working:
    """Run a worker of pool `cpu` on the Redis of an address, whose children do what is written."""
    from runner.worker import PoolWorker  # noqa: PLC0415 - few tests need Dramatiq

    @contextmanager
    def working(url: str, body: str, host: RunnerSettings = settings, try_out: TryOut | None = None) -> Iterator[None]:
        worker = PoolWorker(host, url, pool="cpu", name="w", spawn=scripted(body), try_out=try_out)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield
        finally:
            worker.stop()
            thread.join()

    return working


@pytest.fixture
def pretend_installed() -> Callable[[Path, str, str], None]:
    """Put a package's metadata into a folder; for whoever has that folder on its path, it is that version."""

    def pretend(folder: Path, name: str, version: str) -> None:
        metadata = folder / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return pretend


@pytest.fixture
def settings(tmp_path: Path) -> RunnerSettings:
    """A host with folders of its own; for tests that need no other."""
    return dataclasses.replace(
        load_settings({}), output_root=tmp_path / "outputs", state_dir=tmp_path / "state", host="host-a"
    )


@pytest.fixture
def workers(store: Store, valkey_url: str, tmp_path: Path) -> Iterator[Workers]:
    assert store.queue_lengths() == {}
    with worker_processes(valkey_url, tmp_path) as running:
        yield running


@pytest.fixture
def hasty_workers(store: Store, valkey_url: str, tmp_path: Path) -> Iterator[Workers]:
    """Workers whose leases run out within three seconds."""
    assert store.queue_lengths() == {}
    with worker_processes(valkey_url, tmp_path, lease_s=3.0) as running:
        yield running


CATALOG = """\
[1]
name = "sums"
path = "data/sums.jsonl"

[2]
name = "chats"
path = "data/chats.jsonl"
"""
PROJECT = """\
name = "good"
base_model = "tiny"
output_directory = "good"

[[traits]]
trait_type = "sums"
[[traits.datasets]]
dataset_id = 1
percentage = 50

[training]
max_steps = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A projects folder with one good project."""
    root = tmp_path / "projects"
    (root / "data").mkdir(parents=True)
    (root / "datasets.toml").write_text(CATALOG)
    (root / "good.toml").write_text(PROJECT)
    (root / "data" / "sums.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    (root / "data" / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
    )
    return root


Problems = Callable[..., list[str]]


@pytest.fixture
def problems(folder: Path) -> Problems:
    """The problems of the project, after replacing each left text of it by the right one."""

    def problems(*changes: tuple[str, str], overrides: Mapping[str, str] | None = None) -> list[str]:
        text = PROJECT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / "good.toml").write_text(text)
        with pytest.raises(SpecError) as caught:
            load_project(folder, "good", overrides)
        return [str(problem) for problem in caught.value.problems]

    return problems
