"""`hosts [--pool P] [--json]`: every live worker with its devices, its host's room, what it does, and what keeps it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from datetime import UTC, datetime

from runner.cli.jobs_store import jobs_store
from runner.console import columns, duration_text, printable
from runner.jobs import WorkerInfo

_HEADINGS = ("HOST", "WORKER", "POOL", "STATE", "JOB", "DEVICES", "MEMORY", "DISK LEFT", "STACK", "SEEN")
_GIB = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--pool", help="only those that serve this pool")
    parser.add_argument("--json", action="store_true", help="a JSON list, one object a worker")


def run(arguments: argparse.Namespace) -> int:
    """Print the inventory."""
    with jobs_store() as store:
        workers, drains = store.workers(arguments.pool), store.drained()
    workers.sort(key=lambda worker: (worker.host, worker.name))
    if arguments.json:
        told = [{**worker.model_dump(mode="json"), "state": worker.state(drains)} for worker in workers]
        print(json.dumps(told, indent=2))
        return 0
    if not workers:
        print("No worker is alive. Start one on a GPU host: `python -m runner worker --pool gpu`")
    else:
        now = datetime.now(UTC)
        for line in columns([_HEADINGS, *(_row(worker, drains, now) for worker in workers)]):
            print(printable(line))
    for worker in workers:
        if worker.hindrance is not None:
            print(printable(f"⚠️ {worker.name}: {worker.hindrance.why}"))
    for drain in drains.values():
        print(printable(f"Host {drain.host} takes no new jobs, drained by {drain.by}"))
    return 0


def _row(worker: WorkerInfo, drained: Collection[str], now: datetime) -> tuple[str, ...]:
    devices = worker.device
    if any(gpu.index is not None for gpu in worker.gpus):
        devices = f"{','.join(str(gpu.index) for gpu in worker.gpus if gpu.index is not None)}: {devices}"
    return (
        worker.host,
        worker.name,
        worker.pool,
        worker.state(drained),
        worker.job_id or "",
        devices,
        _room(worker.memory_free_bytes, worker.memory_bytes),
        _room(worker.disk_free_bytes),
        worker.stack,
        f"{duration_text(max(0.0, (now - worker.last_seen_at).total_seconds()))} ago",
    )


def _room(free: int | None, whole: int | None = None) -> str:
    told = "unknown" if free is None else f"{free / _GIB:.1f}"
    return f"{told} of {whole / _GIB:.1f} GiB" if whole is not None else f"{told} GiB" if free is not None else told
