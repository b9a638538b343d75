from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from runner.child import Child, Spawn
from runner.embedded_redis import EmbeddedRedis
from runner.errors import UnavailableError
from runner.job_events import FinalEvent
from runner.jobs import JobRecord, JobState
from runner.redis_client import build_client
from runner.settings import ChildLimits, Retention, RunnerSettings, load_settings
from runner.spec import RunSpec
from runner.store import Claim, Store
from runner.supervisor import AttemptEnd
from tests.runner.attempt_bench import Attempt, Bench

Scripted = Callable[[str], Spawn]
Eventually = Callable[..., None]

IGNORES_TERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmetrics(1)\ntime.sleep(120)"


@pytest.fixture
def settings(tmp_path: Path) -> RunnerSettings:
    return load_settings({"QLORA_STATE_DIR": str(tmp_path), "QLORA_STOP_GRACE_S": "20", "QLORA_HOST": "host-a"})


@pytest.fixture
def impatient(tmp_path: Path) -> RunnerSettings:
    return load_settings(
        {
            "QLORA_STATE_DIR": str(tmp_path),
            "QLORA_STOP_GRACE_S": "0.5",
            "QLORA_TERM_GRACE_S": "0.5",
            "QLORA_HOST": "host-a",
        }
    )


@pytest.fixture
def bench(store: Store, run_spec: RunSpec, settings: RunnerSettings, eventually: Eventually) -> Bench:
    return Bench(store, run_spec, settings, eventually)


def test_a_good_run_is_published_and_succeeds(bench: Bench, scripted: Scripted) -> None:
    assert bench.start(scripted("metrics(1)\ncheckpoint(1)\nsucceed()")).wait() is AttemptEnd.SUCCEEDED

    job = bench.store.get(bench.job_id)
    assert job.state is JobState.SUCCEEDED
    assert bench.kinds == [
        "job_queued",
        "job_claimed",
        "metrics_logged",
        "checkpoint_saved",
        "run_succeeded",
        "job_succeeded",
    ]
    published = bench.settings.output_root / "demo" / bench.job_id / "adapter"
    assert job.adapter_path == str(published)
    assert (published / "adapter_model.safetensors").read_text() == "weights"
    assert not (published.parent / "attempt-1" / "adapter").exists()


def test_the_child_finds_its_resolved_spec(bench: Bench, scripted: Scripted, run_spec: RunSpec) -> None:
    bench.start(scripted("succeed((RUN_DIR / 'spec.json').read_text())")).wait()

    adapter = Path(bench.store.get(bench.job_id).adapter_path or "")
    assert RunSpec.model_validate_json((adapter / "adapter_model.safetensors").read_text()) == run_spec


def test_a_failed_run_ends_the_job_with_code_message_and_hint(bench: Bench, scripted: Scripted) -> None:
    body = "emit('run_failed', code='dataset', message='Row 3 is empty.', hint='Fill it.')\nsys.exit(1)"

    assert bench.start(scripted(body)).wait() is AttemptEnd.FAILED

    job = bench.store.get(bench.job_id)
    assert (job.state, job.error_code, job.error_message, job.error_hint) == (
        JobState.FAILED,
        "dataset",
        "Row 3 is empty.",
        "Fill it.",
    )


def test_a_child_that_dies_fails_the_job(bench: Bench, scripted: Scripted) -> None:
    assert bench.start(scripted("os.kill(os.getpid(), signal.SIGSEGV)")).wait() is AttemptEnd.FAILED

    assert bench.store.get(bench.job_id).error_code == "child-died"


def test_a_good_end_without_an_adapter_is_a_failure(bench: Bench, scripted: Scripted) -> None:
    body = "emit('run_succeeded', summary=SUMMARY, adapter_path='/nowhere')\nsys.exit(0)"

    assert bench.start(scripted(body)).wait() is AttemptEnd.FAILED

    assert bench.store.get(bench.job_id).error_code == "adapter-missing"


def test_a_host_that_cannot_write_fails_the_job_and_says_why(bench: Bench, scripted: Scripted) -> None:
    bench.settings.output_root.write_text("a file where the folder should be")

    assert bench.start(scripted("succeed()")).wait() is AttemptEnd.FAILED

    job = bench.store.get(bench.job_id)
    assert job.error_code == "run-directory"
    assert "QLORA_OUTPUT_ROOT" in (job.error_hint or "")


def test_an_error_of_the_supervisor_itself_fails_the_job(bench: Bench) -> None:
    def broken(_: Path) -> Child:
        raise RuntimeError("no more processes")

    assert bench.start(broken).wait() is AttemptEnd.FAILED

    assert bench.store.get(bench.job_id).error_code == "internal"


def test_a_stop_ends_the_job_as_cancelled_with_its_checkpoint(bench: Bench, scripted: Scripted) -> None:
    attempt = bench.start(scripted("train()"))
    bench.wait_for("metrics_logged")

    bench.store.request_stop(bench.job_id, "UBOB")

    assert attempt.wait() is AttemptEnd.CANCELLED
    final = bench.store.events(bench.job_id)[-1].event
    assert final.kind == "job_cancelled"
    assert final.by == "UBOB"
    assert final.checkpoint is not None
    assert Path(final.checkpoint).name == f"checkpoint-{final.step}"
    assert (Path(final.checkpoint) / "complete").exists()


def test_stopping_twice_is_stopping_once(bench: Bench, scripted: Scripted) -> None:
    attempt = bench.start(scripted("train()"))
    bench.wait_for("metrics_logged")

    bench.store.request_stop(bench.job_id, "UBOB")
    bench.store.request_stop(bench.job_id, "UCLEO")

    assert attempt.wait() is AttemptEnd.CANCELLED
    assert bench.kinds.count("stop_requested") == 1
    assert bench.kinds.count("job_cancelled") == 1


def test_a_stop_that_comes_too_late_changes_nothing(bench: Bench, scripted: Scripted) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmetrics(1)\nwhile not (RUN_DIR / 'go').exists():\n"
    attempt = bench.start(scripted(body + "    time.sleep(0.02)\nsucceed()"))
    bench.wait_for("metrics_logged")
    bench.store.request_stop(bench.job_id, "UBOB")
    bench.eventually(lambda: attempt.children[0]._asked_to_stop)
    (attempt.children[0].log_path.parent / "go").touch()

    assert attempt.wait() is AttemptEnd.SUCCEEDED
    assert bench.state is JobState.SUCCEEDED


def test_a_child_that_ignores_the_stop_is_killed_when_its_grace_is_over(
    store: Store, run_spec: RunSpec, impatient: RunnerSettings, eventually: Eventually, scripted: Scripted
) -> None:
    bench = Bench(store, run_spec, impatient, eventually)
    attempt = bench.start(scripted("checkpoint(7)\n" + IGNORES_TERM))
    bench.wait_for("metrics_logged")

    bench.store.request_stop(bench.job_id, "UBOB")

    assert attempt.wait() is AttemptEnd.CANCELLED
    assert not attempt.children[0].running
    final = bench.store.events(bench.job_id)[-1].event
    assert final.kind == "job_cancelled"
    assert final.step == 7


def test_a_child_that_only_its_helpers_keep_from_ending_is_cancelled_once_they_are_ended(
    store: Store, run_spec: RunSpec, impatient: RunnerSettings, eventually: Eventually, scripted: Scripted
) -> None:
    patient = dataclasses.replace(impatient, child=ChildLimits(term_grace_s=600.0))
    bench = Bench(store, run_spec, patient, eventually)
    body = """
    helper = subprocess.Popen(["sleep", "600"])
    metrics(helper.pid)
    status = helper.wait()
    emit("run_failed", code="training", message=f"the helper ended with {status}")
    sys.exit(1)
    """
    attempt = bench.start(scripted(body))
    bench.wait_for("metrics_logged")

    bench.store.request_stop(bench.job_id, "UBOB")

    assert attempt.wait() is AttemptEnd.CANCELLED
    assert "the helper ended with -15" in [
        stored.event.message for stored in bench.store.events(bench.job_id) if stored.event.kind == "run_failed"
    ]


def test_a_worker_that_has_to_go_gives_the_job_back_to_the_queue(bench: Bench, scripted: Scripted) -> None:
    attempt = bench.start(scripted("train()"))
    bench.wait_for("metrics_logged")

    attempt.stopping.set()

    assert attempt.wait() is AttemptEnd.REQUEUED
    assert bench.state is JobState.QUEUED
    assert bench.kinds[-3:] == ["checkpoint_saved", "run_interrupted", "job_requeued"]


def test_a_job_given_back_goes_on_from_its_checkpoint_with_another_worker(bench: Bench, scripted: Scripted) -> None:
    first = bench.start(scripted("train()"))
    bench.wait_for("metrics_logged")
    first.stopping.set()
    first.wait()

    second = bench.start(scripted("succeed(str(len(list(RUN_DIR.parent.glob('attempt-*/checkpoints/*/complete')))))"))

    assert second.wait() is AttemptEnd.SUCCEEDED
    job = bench.store.get(bench.job_id)
    assert job.attempt == 2
    assert (Path(job.adapter_path or "") / "adapter_model.safetensors").read_text() == "1"


def test_a_failure_while_the_host_goes_down_is_tried_again_elsewhere(bench: Bench, scripted: Scripted) -> None:
    body = "metrics(1)\nwhile not STOPPING:\n    time.sleep(0.02)\n"
    attempt = bench.start(scripted(body + "emit('run_failed', code='training', message='loader killed')\nsys.exit(1)"))
    bench.wait_for("metrics_logged")

    attempt.stopping.set()

    assert attempt.wait() is AttemptEnd.REQUEUED
    assert bench.state is JobState.QUEUED


def take_the_job_away(bench: Bench) -> None:
    """Let the lease run out, whatever the attempt does to renew it, and the reconciler notice."""
    client = bench.store.client
    while not bench.store.expire_leases():
        client.zadd("qlora:leases", {bench.job_id: 0})


def test_a_lost_lease_stops_the_child_and_publishes_nothing(bench: Bench, scripted: Scripted) -> None:
    attempt = bench.start(scripted("train()"))
    bench.wait_for("metrics_logged")

    take_the_job_away(bench)
    rival = bench.claim("host-b:1")

    assert attempt.wait() is AttemptEnd.LOST
    assert not attempt.children[0].running
    assert not (bench.settings.output_root / "demo" / bench.job_id / "adapter").exists()
    assert bench.store.renew(rival).owned
    assert bench.kinds[-1] == "job_claimed"


def test_a_worker_that_slept_past_its_lease_after_its_claim_starts_no_child(bench: Bench, scripted: Scripted) -> None:
    claim = bench.claim()
    take_the_job_away(bench)

    attempt = Attempt(bench.store, claim, bench.settings, scripted("train()"))

    assert attempt.wait() is AttemptEnd.LOST
    assert attempt.children == []


class AwayAtTheEnd(Store):
    """Redis goes away when the adapter has just been published."""

    def finish(self, claim: Claim, event: FinalEvent) -> JobRecord:
        raise UnavailableError(f"No answer about {claim.job.id} and its {event.kind}.")


def test_what_was_published_but_could_not_be_told_is_told_by_the_next_attempt_and_not_trained_again(
    bench: Bench, scripted: Scripted
) -> None:
    settings = dataclasses.replace(bench.settings, stop_grace_s=0.1)
    first = Attempt(AwayAtTheEnd(bench.store.client), bench.claim(), settings, scripted("succeed('first')"))
    published = bench.settings.output_root / "demo" / bench.job_id / "adapter"
    bench.eventually(published.exists)
    first.stopping.set()
    assert first.wait() is AttemptEnd.LOST
    bench.store.client.zadd("qlora:leases", {bench.job_id: 1})
    bench.store.expire_leases()

    second = bench.start(scripted("succeed('second')"))

    assert second.wait() is AttemptEnd.SUCCEEDED
    assert second.children == []
    assert (published / "adapter_model.safetensors").read_text() == "first"
    job = bench.store.get(bench.job_id)
    assert (job.adapter_path, job.summary and job.summary.steps) == (str(published), 4)


def test_an_adapter_made_after_the_lease_was_lost_is_not_published(bench: Bench, scripted: Scripted) -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmetrics(1)\nwhile not (RUN_DIR / 'go').exists():\n"
    attempt = bench.start(scripted(body + "    time.sleep(0.02)\nsucceed()"))
    bench.wait_for("metrics_logged")
    take_the_job_away(bench)
    (attempt.children[0].log_path.parent / "go").touch()

    assert attempt.wait() is AttemptEnd.LOST
    assert not (bench.settings.output_root / "demo" / bench.job_id / "adapter").exists()
    assert bench.state is JobState.QUEUED


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path / "own") as server:
        yield server


@pytest.fixture
def own_bench(
    own_server: EmbeddedRedis, run_spec: RunSpec, settings: RunnerSettings, eventually: Eventually
) -> Iterator[Bench]:
    # Short, so that a silent server costs replies and not only time; and every event is kept after the end.
    client = build_client(own_server.url, decode_responses=True, timeout_s=0.3)
    store = Store(client, retention=Retention(events=2000))
    yield Bench(store, run_spec, settings, eventually)
    store.close()


def steps_told(bench: Bench) -> list[int]:
    return [stored.event.step for stored in bench.store.events(bench.job_id) if stored.event.kind == "metrics_logged"]


@contextmanager
def restarted(server: EmbeddedRedis) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@contextmanager
def silent(server: EmbeddedRedis) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    yield
    os.kill(server.pid, signal.SIGCONT)


@contextmanager
def unwilling(server: EmbeddedRedis) -> Iterator[None]:
    """It answers, but writes nothing, as with a full disk."""
    client = build_client(server.url, decode_responses=True)
    client.config_set("min-replicas-to-write", "1")
    yield
    client.config_set("min-replicas-to-write", "0")
    client.close()


@pytest.mark.parametrize("outage", [restarted, silent, unwilling])
def test_a_training_outlives_redis_and_loses_no_event(
    own_server: EmbeddedRedis,
    own_bench: Bench,
    scripted: Scripted,
    eventually: Eventually,
    outage: Callable[[EmbeddedRedis], AbstractContextManager[None]],
) -> None:
    attempt = own_bench.start(scripted("train(until=60)\nsucceed()"))
    own_bench.wait_for("metrics_logged")

    with outage(own_server):
        eventually(lambda: not attempt.children[0].running)

    assert attempt.wait() is AttemptEnd.SUCCEEDED
    assert steps_told(own_bench) == list(range(1, 61))
    assert [stored.seq for stored in own_bench.store.events(own_bench.job_id)] == list(range(1, 66))


def test_a_worker_that_has_to_go_does_not_wait_for_redis_for_ever(
    own_server: EmbeddedRedis, run_spec: RunSpec, impatient: RunnerSettings, eventually: Eventually, scripted: Scripted
) -> None:
    store = Store.connect(own_server.url)
    bench = Bench(store, run_spec, impatient, eventually)
    attempt = bench.start(scripted("train()"))
    bench.wait_for("metrics_logged")
    own_server.stop()

    attempt.stopping.set()

    assert attempt.wait() is AttemptEnd.LOST
    assert not attempt.children[0].running
    store.close()
