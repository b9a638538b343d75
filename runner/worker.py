"""A worker: takes tickets of one pool, runs the jobs it finds one at a time, and helps to put right what got lost.

One process, one Dramatiq thread, one queue, and one message at a time: a worker with a longer reach would hold jobs
that an idle host could run (`docs/architecture.md`). Nothing here ends because Redis is away for a while.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from uuid import uuid4

import dramatiq
import redis

from runner.actors import declare_look_for_work
from runner.canary import Canary, TryOut, train_one_step
from runner.child import Child, Spawn, spawn_training
from runner.data_copies import tell_differences
from runner.device import choose_gpus, describe_device, list_gpus
from runner.embedded_redis import resolve_redis_url
from runner.errors import UnavailableError
from runner.former_worker import take_back
from runner.jobs import WorkerInfo
from runner.pools import Gpu, Hindrance, Obstacle
from runner.queue import build_broker, issue_ticket, queue_name
from runner.readiness import Readiness, memory_bytes
from runner.reconciler import Reconciler, look_every_s
from runner.redis_server import what_could_lose_jobs
from runner.settings import RunnerSettings
from runner.slots import AttemptNote, Slots, take_slots
from runner.standby import spawning
from runner.store import Claim, Store
from runner.supervisor import AttemptEnd, run_attempt
from runner.versions import format_versions, report_versions, require_working_stack

logger = logging.getLogger(__name__)

POLL_S = 0.1
CLAIM_RETRY_S = 1.0
OBSTACLE_LOOK_S = 2.0
"""Seconds between two looks whether a worker may work again that something keeps from the jobs of its pool."""
_WHY = {
    Obstacle.DRAINED: "Host {host} is drained.",
    Obstacle.UNFIT: "No job that waits in pool {pool} fits the devices here ({device}), or this host declined it.",
}
SHUTDOWN_S = 3.0
"""How long the threads have to end once no attempt runs any more; without Redis they would try for ever."""


class PoolWorker:
    """A running worker; `run` returns when it has been stopped and its job is in safe hands.

    Args:
        settings: Folders and patience of this host.
        url: Where Redis is.
        pool: Whose jobs it runs.
        name: Unique among live workers.
        gpus: Its devices, none where it trains on the CPU.
        slots: Its locks on this host, which also hold what it works on; None to do without.
        spawn: Starts children; the training itself unless a test puts something else in its place.
        try_out: What its host has to pass before it takes a job, None for nothing.

    Raises:
        UnavailableError: Redis does not answer.
    """

    def __init__(
        self,
        settings: RunnerSettings,
        url: str,
        *,
        pool: str,
        name: str,
        gpus: Sequence[Gpu] = (),
        slots: Slots | None = None,
        spawn: Spawn | None = None,
        try_out: TryOut | None = None,
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._spawn = self._noting_children(spawn or spawn_training(settings))
        self._stopping = threading.Event()
        self._stop_asked = False
        self._looking = threading.Lock()
        self._store = Store.connect(url, lease_s=settings.lease_s, retention=settings.retention)
        self._broker = build_broker(url)
        for finding in what_could_lose_jobs(self._store.client):
            logger.warning("%s", finding)
        now = datetime.now(UTC)
        versions = report_versions(describe_device(gpus))
        logger.info("Libraries of this worker:\n%s", format_versions(versions))
        self._info = WorkerInfo(
            name=name,
            host=settings.host,
            pool=pool,
            device=versions.device,
            gpus=tuple(gpus),
            stack=versions.stack,
            memory_bytes=memory_bytes(),
            started_at=now,
            last_seen_at=now,
        )
        self._changed = threading.Event()
        self._readiness = Readiness(settings, gpus)
        if try_out is not None:
            self._readiness.canary = Canary(
                try_out,
                retry_s=settings.canary_retry_s,
                may_begin=self._readiness.gpus_are_free,
                changed=self._changed.set,
            )
        self._leaving = False
        declare_look_for_work(self._broker, pool, self.look_for_work)
        self._dramatiq = dramatiq.Worker(self._broker, queues={queue_name(pool)}, worker_threads=1)
        # One message at a time; set here and not by Dramatiq's environment variable, so that nobody's can change it.
        self._dramatiq.queue_prefetch = 1

    def stop(self) -> None:
        """Ask the worker to end; callable from a signal handler, which is why it sets nothing but an attribute."""
        self._stop_asked = True

    def run(self) -> None:
        """Work until `stop`: then a running job writes its checkpoint and goes back to the queue."""
        announcer = threading.Thread(target=self._announce, name="announcer", daemon=True)
        reconciler = Reconciler(self._store, self._broker)
        self._take_back()
        if self._readiness.canary is not None:
            self._readiness.canary.start()
        announcer.start()
        self._dramatiq.start()
        reconciler.start()
        logger.info("Worker %s takes jobs of pool %s (%s).", self._info.name, self._info.pool, self._info.device)
        try:
            while not self._stop_asked:
                time.sleep(POLL_S)
        finally:
            self._stopping.set()
            if self._readiness.canary is not None:
                self._readiness.canary.close()
            logger.info("Worker %s stops.", self._info.name)
            with self._looking:  # Held by whoever runs a job, which ends soon now.
                pass
            self._leaving = True
            self._changed.set()
            self._end(announcer, reconciler)

    def look_for_work(self, pool: str) -> None:
        """Claim the best queued job and run it. A ticket too many finds nothing."""
        with self._looking:
            claim = self._claim_when_ready(pool)
            if claim is None:
                return
            self._set_job(claim.job.id)
            self._note(AttemptNote(worker=self._info.name, job_id=claim.job.id, token=claim.token))
            try:
                end = run_attempt(self._store, claim, self._settings, stopping=self._stopping, spawn=self._spawn)
            finally:
                self._set_job(None)
            if end is not AttemptEnd.LOST:  # Else it may be that nobody could be told, and the next worker tells.
                self._note(None)
            if end in {AttemptEnd.REQUEUED, AttemptEnd.DECLINED}:
                self._pass_on(pool)

    def _claim(self, pool: str) -> Claim | None:
        request_id = uuid4().hex
        while not self._stopping.is_set():
            try:
                return self._store.claim(pool, self._info, request_id=request_id)
            except UnavailableError as error:
                logger.warning("Cannot look for work: %s", error)
                self._stopping.wait(CLAIM_RETRY_S)
        return None

    def _claim_when_ready(self, pool: str) -> Claim | None:
        """Claim a job as soon as nothing keeps this worker from it; None where there is none for anybody.

        Until then this worker's only thread takes no tickets; others can use them.
        """
        held = False
        while not self._stopping.is_set():
            hindrance = self._readiness.hindrance() or (self._kept_from(pool) if held else None)
            if hindrance is None:
                claim = self._claim(pool)
                if claim is not None:
                    self._tell_hindrance(None)
                    return claim
                hindrance = self._kept_from(pool)
            self._tell_hindrance(hindrance)
            if hindrance is None:
                return None
            if not held:
                self._pass_on(pool)
            held = True
            self._stopping.wait(OBSTACLE_LOOK_S)
        if not held:
            self._pass_on(pool)
        return None

    def _kept_from(self, pool: str) -> Hindrance | None:
        """What the store knows to keep this worker from the jobs of its pool."""
        while not self._stopping.is_set():
            try:
                obstacle = self._store.obstacle(pool, self._info)
            except UnavailableError as error:
                logger.warning("Cannot see what keeps worker %s from its pool: %s", self._info.name, error)
                self._stopping.wait(OBSTACLE_LOOK_S)
            else:
                if obstacle is None:
                    return None
                return Hindrance(obstacle=obstacle, why=_WHY[obstacle].format_map(self._info.model_dump()))
        return None

    def _tell_hindrance(self, hindrance: Hindrance | None) -> None:
        if hindrance != self._info.hindrance:
            if hindrance is not None:
                logger.warning("Worker %s takes no jobs: %s", self._info.name, hindrance.why)
            else:
                logger.info("Worker %s takes jobs again.", self._info.name)
            self._info = self._info.model_copy(update={"hindrance": hindrance})
            self._changed.set()

    def _pass_on(self, pool: str) -> None:
        """Let another worker look, at once and not only when a reconciler notices."""
        try:
            issue_ticket(self._broker, pool)
        except UnavailableError as error:
            logger.warning("No ticket for pool %s could be issued, a reconciler will: %s", pool, error)

    def _take_back(self) -> None:
        """Before anything else: what the worker before us on this device was at when it died."""
        while self._slots is not None and self._slots.left and not self._stop_asked:
            try:
                take_back(self._slots, self._store)
            except UnavailableError as error:
                logger.warning("The job of the worker that died here cannot be taken back yet: %s", error)
                time.sleep(CLAIM_RETRY_S)

    def _note(self, attempt: AttemptNote | None) -> None:
        if self._slots is not None:
            self._slots.note_attempt(attempt)

    def _noting_children(self, spawn: Spawn) -> Spawn:
        """For the next worker on this device: it gives the job back only when these processes are gone."""

        def noting(run_dir: Path) -> Child:
            child = spawn(run_dir)
            if self._slots is not None:
                self._slots.note_child(child.pid)
            return child

        return noting

    def _set_job(self, job_id: str | None) -> None:
        self._info = self._info.model_copy(update={"job_id": job_id})
        self._changed.set()

    def _announce(self) -> None:
        """Keep this worker on the list of live ones, and take it off when it leaves."""
        while not self._leaving:
            try:
                self._look_at_the_host()
                now = {"last_seen_at": datetime.now(UTC), **self._readiness.measurements()}
                self._store.announce(self._info.model_copy(update=now))
                self._readmit()
            except UnavailableError as error:
                logger.warning("Worker %s cannot announce itself: %s", self._info.name, error)
            except Exception:
                # A bug of ours; unseen a worker is worth little, but what it trains is.
                logger.exception("Worker %s cannot announce itself, or look at what it has declined.", self._info.name)
            self._changed.wait(look_every_s(self._store.lease_s))
            self._changed.clear()
        try:
            self._store.withdraw(self._info.name)
        except UnavailableError as error:
            # Nothing is lost: an announcement runs out by itself.
            logger.warning("Worker %s could not say goodbye: %s", self._info.name, error)

    def _readmit(self) -> None:
        """Let this host claim again what it has declined, where its copy of the data has come to be the submitter's."""
        for job in self._store.declined_by(self._info.host):
            if tell_differences(job.spec, self._settings) is None:
                logger.info("The data of job %s are here now.", job.id)
                self._store.readmit(job.id, self._info.host)
                self._pass_on(job.pool)

    def _look_at_the_host(self) -> None:
        """Find out what keeps an idle worker from jobs before one comes, so that people see it in time."""
        if self._looking.acquire(blocking=False):  # Else a job runs, or somebody looks already.
            try:
                self._tell_hindrance(self._readiness.hindrance())
            finally:
                self._looking.release()

    def _end(self, announcer: threading.Thread, reconciler: Reconciler) -> None:
        deadline = time.monotonic() + SHUTDOWN_S
        try:
            self._dramatiq.stop(timeout=int(SHUTDOWN_S * 1000))
        except redis.RedisError as error:
            logger.warning(
                "The tickets of worker %s could not be given back, a reconciler will: %s", self._info.name, error
            )
        reconciler.close(max(0.0, deadline - time.monotonic()))
        announcer.join(max(0.0, deadline - time.monotonic()))
        self._broker.close()
        self._broker.client.close()
        self._store.close()


def run_worker(
    settings: RunnerSettings,
    *,
    pool: str,
    name: str | None = None,
    devices: str | None = None,
    spawn: Spawn | None = None,
    canary: bool = False,
) -> int:
    """Run a worker in this process until SIGTERM or SIGINT; a second one ends it at once. For the main thread only.

    Args:
        settings: Folders and patience of this host.
        pool: Whose jobs it runs.
        name: How reports call it; host and process id when absent.
        devices: Which GPUs it has, as `runner.device.choose_gpus` reads them; when absent those of
            `CUDA_VISIBLE_DEVICES`, else all.
        spawn: As in `PoolWorker`.
        canary: Whether it takes jobs only once it has trained one step of a tiny model.

    Returns:
        The exit status.

    Raises:
        UsageError: There are no such devices.
        UnavailableError: The libraries of this host cannot train (`stack-unusable`); another worker has one of the
            devices (`device-taken`) or the name (`name-taken`); Redis cannot be found, or does not answer.
    """
    require_working_stack()
    gpus = _pin_devices(devices, settings)
    called = name or f"{settings.host}:{os.getpid()}"
    with closing(take_slots(settings.lock_folder, settings.host, called, gpus=gpus, name=name)) as slots:
        url = resolve_redis_url(settings)
        try_out = partial(train_one_step, settings, called) if canary else None
        with spawning(settings, spawn) as ready_spawn:
            worker = PoolWorker(
                settings, url, pool=pool, name=called, gpus=gpus, slots=slots, spawn=ready_spawn, try_out=try_out
            )
            _end_on_signals(worker)
            worker.run()
    return 0


def _pin_devices(devices: str | None, settings: RunnerSettings) -> tuple[Gpu, ...]:
    """Choose this process's GPUs, and let whatever it starts see only these."""
    here = list_gpus()
    wanted = devices if devices is not None else settings.cuda_visible_devices if here else None
    chosen = here if wanted is None else choose_gpus(wanted, here)
    if here:
        # By id: CUDA numbers GPUs by speed, the driver's tool by their place.
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in chosen)
    return chosen


def _end_on_signals(worker: PoolWorker) -> None:
    stop_asked = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop_asked
        if stop_asked:
            # The child goes with us (`runner.child`). Its job comes back with the next worker on this device, or when
            # the lease has run out.
            os._exit(1)
        stop_asked = True
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
