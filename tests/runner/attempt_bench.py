"""A store with one job in it, and attempts of that job that run in threads, as they do below Dramatiq."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from runner.child import Child, Spawn
from runner.jobs import JobState, WorkerInfo
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from runner.store import Claim, Store
from runner.supervisor import AttemptEnd, run_attempt

Eventually = Callable[..., None]


class Attempt:
    """An attempt that runs in a thread of its own, as it does below Dramatiq."""

    def __init__(self, store: Store, claim: Claim, settings: RunnerSettings, spawn: Spawn) -> None:
        self.claim = claim
        self.stopping = threading.Event()
        self.children: list[Child] = []
        self.end: AttemptEnd | None = None

        def spawn_and_remember(run_dir: Path) -> Child:
            self.children.append(spawn(run_dir))
            return self.children[-1]

        def run() -> None:
            self.end = run_attempt(store, claim, settings, stopping=self.stopping, spawn=spawn_and_remember)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def wait(self) -> AttemptEnd:
        self._thread.join(40)
        assert self.end is not None, "the attempt did not end"
        return self.end


class Bench:
    """A store with one job in it, and attempts of that job."""

    def __init__(self, store: Store, spec: RunSpec, settings: RunnerSettings, eventually: Eventually) -> None:
        self.store = store
        self.settings = settings
        self.eventually = eventually
        self.job_id = store.submit(spec, submitted_by="UANN", origin={}, request_id="r1").id

    def claim(self, name: str = "host-a:1") -> Claim:
        now = datetime.now(UTC)
        worker = WorkerInfo(
            name=name,
            host=name.split(":", maxsplit=1)[0],
            pool="cpu",
            device="cpu (2 threads)",
            stack="current",
            started_at=now,
            last_seen_at=now,
        )
        claim = self.store.claim("cpu", worker)
        assert claim is not None
        return claim

    def start(self, spawn: Spawn) -> Attempt:
        return Attempt(self.store, self.claim(), self.settings, spawn)

    @property
    def state(self) -> JobState:
        return self.store.get(self.job_id).state

    @property
    def kinds(self) -> list[str]:
        return [stored.event.kind for stored in self.store.events(self.job_id)]

    def wait_for(self, kind: str) -> None:
        self.eventually(lambda: kind in self.kinds)
