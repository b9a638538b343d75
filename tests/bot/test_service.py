"""What the commands do, with a real Valkey behind them."""

from __future__ import annotations

from pathlib import Path

import pytest
from dramatiq.brokers.redis import RedisBroker

from bot.commands import Help, Jobs, Projects, Start, Status, Stop, Versions
from bot.render.answers import render_answer, render_error
from bot.service import (
    HelpAnswer,
    JobList,
    JobStatus,
    Overview,
    ProjectList,
    Request,
    Service,
    StackList,
    Started,
    StopAnswer,
)
from runner.errors import JobError, SpecError, UnavailableError, UsageError
from runner.jobs import JobState, WorkerInfo
from runner.queue import build_broker, tickets_waiting
from runner.redis_client import build_client
from runner.store import Store

PROJECT = """
name = "NAME"
base_model = "tiny-llama"
output_directory = "out"
[[traits]]
trait_type = "arithmetic"
[[traits.datasets]]
dataset_id = 1
[compute]
pool = "cpu"
"""
WISH = Request(user="U0ANN", channel="C0QLORA", request_id="wish-1")


@pytest.fixture
def projects_dir(tmp_path: Path) -> Path:
    for name in ("demo", "other"):
        (tmp_path / f"{name}.toml").write_text(PROJECT.replace("NAME", name))
    (tmp_path / "datasets.toml").write_text('[1]\nname = "addition"\npath = "addition.jsonl"\n')
    (tmp_path / "addition.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    return tmp_path


@pytest.fixture
def service(store: Store, broker: RedisBroker, projects_dir: Path) -> Service:
    return Service(store, broker, projects_dir)


def _wish(number: int, job_id: str | None = None) -> Request:
    return Request(user="U0ANN", channel="C0QLORA", request_id=f"wish-{number}", job_id=job_id)


def test_start_queues_a_job_with_its_origin_and_a_ticket(service: Service, store: Store, broker: RedisBroker) -> None:
    answer = service.answer(Start("demo", {"lora.r": "8"}), WISH)
    assert isinstance(answer, Started)
    assert answer == Started(store.get(answer.job.id), position=1, pool_is_served=False)
    assert answer.job.origin == {"channel": "C0QLORA"}
    assert answer.job.submitted_by == "U0ANN"
    assert answer.job.spec.project.lora.r == 8
    assert tickets_waiting(broker, "cpu") == 1


def test_start_and_status_tell_of_a_freeze_and_of_drained_hosts(service: Service, store: Store) -> None:
    freeze, drain = store.freeze("new driver", "ann"), store.drain("gpu-1", "ann")
    started, overview = service.answer(Start("demo"), WISH), service.answer(Status(), WISH)
    assert isinstance(started, Started)
    assert isinstance(overview, Overview)
    assert (started.frozen, overview.frozen, overview.drained) == (freeze, freeze, (drain,))
    assert "new driver" in render_answer(started, now=freeze.at).text


def test_a_command_delivered_twice_starts_one_job(service: Service, store: Store) -> None:
    first, second = service.start(Start("demo"), WISH), service.start(Start("demo"), WISH)
    assert first.job.id == second.job.id
    assert len(store.jobs()) == 1


def test_an_unknown_project_names_those_there_are(service: Service, store: Store) -> None:
    with pytest.raises(UsageError) as caught:
        service.answer(Start("dmeo"), WISH)
    assert "'demo'" in (caught.value.hint or "")
    assert "demo, other" in (caught.value.hint or "")
    assert store.jobs() == []


def test_a_broken_project_is_told_whole_and_not_queued(service: Service, store: Store, projects_dir: Path) -> None:
    broken = PROJECT.replace("NAME", "demo").replace("dataset_id = 1", "dataset_id = 9") + "[lora]\nr = 0\n"
    (projects_dir / "demo.toml").write_text(broken)
    with pytest.raises(SpecError) as caught:
        service.answer(Start("demo"), WISH)
    assert len(caught.value.problems) == 2
    told = render_error(caught.value).text
    assert "`demo.toml:8`" in told
    assert "`lora.r`" in told
    assert store.jobs() == []


@pytest.mark.parametrize("wanted", ["{id}", "{id:.7}", "demo"])
def test_a_job_is_meant_by_id_by_its_start_or_by_its_project(wanted: str, service: Service) -> None:
    job = service.start(Start("demo"), WISH).job
    service.start(Start("other"), _wish(2))
    answer = service.answer(Stop(wanted.format(id=job.id)), WISH)
    assert isinstance(answer, StopAnswer)
    assert (answer.job.id, answer.job.state) == (job.id, JobState.CANCELLED)


def test_a_project_means_its_only_job(service: Service) -> None:
    job = service.start(Start("demo"), WISH).job
    answer = service.answer(Stop("demo"), WISH)
    assert isinstance(answer, StopAnswer)
    assert (answer.job.id, answer.job.state) == (job.id, JobState.CANCELLED)


def test_a_running_job_is_not_stopped_by_a_name_that_a_waiting_one_shares(
    service: Service, store: Store, worker_info: WorkerInfo
) -> None:
    running = service.start(Start("demo"), WISH).job
    service.start(Start("demo"), _wish(2))
    assert store.claim("cpu", worker_info) is not None
    with pytest.raises(JobError):
        service.answer(Stop("demo"), WISH)
    assert store.get(running.id).state is JobState.RUNNING


def test_a_name_that_means_several_jobs_lists_them(service: Service) -> None:
    jobs = [service.start(Start("demo"), _wish(number)).job for number in (1, 2)]
    with pytest.raises(JobError) as caught:
        service.answer(Stop("demo"), WISH)
    assert caught.value.code == "job-ambiguous"
    assert all(job.id in (caught.value.hint or "") for job in jobs)


def test_stopping_a_job_that_is_over_says_so(service: Service) -> None:
    job = service.start(Start("demo"), WISH).job
    service.answer(Stop(job.id), WISH)
    with pytest.raises(JobError) as caught:
        service.answer(Stop(job.id), WISH)
    assert caught.value.code == "job-finished"


def test_stop_without_a_job_means_the_threads_own(service: Service) -> None:
    job = service.start(Start("demo"), WISH).job
    service.start(Start("demo"), _wish(2))
    answer = service.answer(Stop(None), _wish(3, job.id))
    assert isinstance(answer, StopAnswer)
    assert answer.job.id == job.id
    with pytest.raises(UsageError):
        service.answer(Stop(None), WISH)


def test_status_of_everything(service: Service, store: Store, worker_info: WorkerInfo) -> None:
    jobs = [service.start(Start("demo"), _wish(number)).job for number in (1, 2, 3)]
    store.announce(worker_info)
    assert store.claim("cpu", worker_info) is not None
    answer = service.answer(Status(), WISH)
    assert isinstance(answer, Overview)
    assert [story.record.id for story in answer.running] == [jobs[0].id]
    assert [(queue.pool, [job.id for job in queue.jobs]) for queue in answer.queues] == [
        ("cpu", [jobs[1].id, jobs[2].id])
    ]
    assert answer.workers == (worker_info,)


def test_status_of_one_job_tells_its_position(service: Service) -> None:
    jobs = [service.start(Start("demo"), _wish(number)).job for number in (1, 2)]
    answer = service.answer(Status(jobs[1].id), WISH)
    assert isinstance(answer, JobStatus)
    assert (answer.job.id, answer.position) == (jobs[1].id, 2)


def test_lists(service: Service, projects_dir: Path) -> None:
    (projects_dir / "broken.toml").write_text("name = ")
    job = service.start(Start("demo"), WISH).job
    jobs, projects = service.answer(Jobs(), WISH), service.answer(Projects(), WISH)
    stacks = service.answer(Versions(), WISH)
    assert isinstance(jobs, JobList)
    assert [one.id for one in jobs.jobs] == [job.id]
    assert isinstance(projects, ProjectList)
    assert [(one.name, one.error is None) for one in projects.projects] == [
        ("broken", False),
        ("demo", True),
        ("other", True),
    ]
    assert isinstance(stacks, StackList)
    assert "transformers" in stacks.stacks["current"]
    assert service.answer(Help(), WISH) == HelpAnswer()


def test_without_redis_a_command_says_so(valkey_url: str, projects_dir: Path) -> None:
    nowhere = valkey_url.rsplit(":", 1)[0] + ":1/0"
    client, broker = build_client(nowhere, decode_responses=True, retries=0), build_broker(nowhere)
    with pytest.raises(UnavailableError) as caught:
        Service(Store(client), broker, projects_dir).answer(Start("demo"), WISH)
    client.close()
    broker.client.close()
    assert "Redis does not answer" in render_error(caught.value).text
