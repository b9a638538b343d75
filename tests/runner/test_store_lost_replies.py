"""Replies that get lost on the way: the client repeats the step, and the store carries it out once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from runner.errors import JobError
from runner.events import JobCancelled, JobFailed, PhaseStarted
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.reports import Phase
from runner.spec import RunSpec
from runner.store import Claim, Store

Submit = Callable[..., JobRecord]


class LossyLine:
    """A TCP relay to the server that, when told, delivers a script call and cuts the line before its reply."""

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lose_next = threading.Event()
        self.lost = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def lose_next_reply(self) -> None:
        self._lose_next.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._sockets:
            _cut(each)
        for thread in self._threads:
            thread.join()
        for each in [*self._sockets, self._listener]:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._server)
            self._sockets += [near, far]
            thread = threading.Thread(target=self._relay, args=(near, far))
            self._threads.append(thread)
            thread.start()

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        # Redis answers in turn, so one request at a time is enough of a relay.
        try:
            while request := near.recv(1 << 20):
                far.sendall(request)
                reply = far.recv(1 << 20)
                if b"EVALSHA" in request and self._lose_next.is_set():
                    self._lose_next.clear()
                    self.lost += 1
                    break
                near.sendall(reply)
        except OSError:
            pass  # either end has gone: so does the line
        _cut(near)
        _cut(far)


def _cut(line: socket.socket) -> None:
    with suppress(OSError):  # cut already
        line.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(valkey_url: str) -> Iterator[LossyLine]:
    port = urlsplit(valkey_url).port
    assert port is not None
    line = LossyLine(port)
    yield line
    line.close()


@pytest.fixture
def far_store(store: Store, valkey_url: str, line: LossyLine) -> Iterator[Store]:
    """The store of `store`, seen through the lossy line."""
    far = Store.connect(valkey_url.replace(f":{urlsplit(valkey_url).port}", f":{line.port}"), lease_s=store.lease_s)
    yield far
    far.close()


@pytest.fixture
def claim(store: Store, far_store: Store, submit_job: Submit, some_worker: WorkerInfo) -> Claim:
    """A job that is held, after every step has been used once, so that the server knows all scripts."""
    other = submit_job()
    for end in (JobFailed(code="dataset", message="m"), None):
        warm_up = far_store.claim(some_worker.pool, some_worker)
        assert warm_up is not None
        far_store.append(warm_up, PhaseStarted(phase=Phase.VERSIONS))
        if end is None:
            far_store.request_stop(warm_up.job.id, "U1")
        else:
            far_store.requeue(warm_up)
            again = far_store.claim(some_worker.pool, some_worker)
            assert again is not None
            far_store.finish(again, end)
            submit_job()
    assert store.get(other.id).is_final
    submit_job()
    claim = far_store.claim(some_worker.pool, some_worker)
    assert claim is not None
    return claim


def kinds(store: Store, job_id: str) -> list[str]:
    return [stored.event.kind for stored in store.events(job_id)]


@pytest.mark.usefixtures("claim")
def test_a_submit_whose_reply_is_lost_makes_one_job(
    store: Store, far_store: Store, line: LossyLine, run_spec: RunSpec
) -> None:
    before = len(store.jobs())
    line.lose_next_reply()

    job = far_store.submit(run_spec, submitted_by="U1", origin={}, request_id="lossy")

    assert line.lost == 1
    assert len(store.jobs()) == before + 1
    assert kinds(store, job.id) == ["job_queued"]


@pytest.mark.usefixtures("claim")
def test_a_claim_whose_reply_is_lost_takes_one_job(
    store: Store, far_store: Store, line: LossyLine, submit_job: Submit, some_worker: WorkerInfo
) -> None:
    first, second = submit_job(), submit_job()
    line.lose_next_reply()

    claim = far_store.claim(some_worker.pool, some_worker)

    assert line.lost == 1
    assert claim is not None
    assert (claim.job.id, claim.job.attempt) == (first.id, 1)
    assert store.renew(claim).owned is True
    assert store.get(second.id).state is JobState.QUEUED
    assert kinds(store, first.id) == ["job_queued", "job_claimed"]


def test_an_event_whose_reply_is_lost_is_there_once(
    store: Store, far_store: Store, line: LossyLine, claim: Claim
) -> None:
    line.lose_next_reply()

    far_store.append(claim, PhaseStarted(phase=Phase.MODEL))

    assert line.lost == 1
    assert kinds(store, claim.job.id) == ["job_queued", "job_claimed", "phase_started"]


def test_an_end_whose_reply_is_lost_is_there_once(
    store: Store, far_store: Store, line: LossyLine, claim: Claim
) -> None:
    line.lose_next_reply()

    ended = far_store.finish(claim, JobFailed(code="dataset", message="m"))

    assert line.lost == 1
    assert ended.state is JobState.FAILED
    assert kinds(store, claim.job.id) == ["job_queued", "job_claimed", "job_failed"]


def test_a_job_given_back_whose_reply_is_lost_is_given_back_once(
    store: Store, far_store: Store, line: LossyLine, claim: Claim
) -> None:
    line.lose_next_reply()

    job = far_store.requeue(claim)

    assert line.lost == 1
    assert job.state is JobState.QUEUED
    assert kinds(store, claim.job.id) == ["job_queued", "job_claimed", "job_requeued"]


@pytest.mark.usefixtures("claim")
def test_a_stop_of_a_queued_job_whose_reply_is_lost_is_no_error(
    store: Store, far_store: Store, line: LossyLine, submit_job: Submit
) -> None:
    job = submit_job()
    line.lose_next_reply()

    stopped = far_store.request_stop(job.id, "U2")

    assert line.lost == 1
    assert stopped.state is JobState.CANCELLED
    assert isinstance(store.events(job.id)[-1].event, JobCancelled)
    assert kinds(store, job.id) == ["job_queued", "job_cancelled"]
    with pytest.raises(JobError):
        far_store.request_stop(job.id, "U2")
