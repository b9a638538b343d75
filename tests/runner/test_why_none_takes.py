"""A job that no live worker takes is told so wherever somebody looks at it."""

from __future__ import annotations

from typing import Any

import pytest

from runner.__main__ import main
from runner.jobs import WorkerInfo, why_none_takes
from runner.pools import Gpu, Hindrance, Obstacle
from runner.spec import Compute, RunSpec
from runner.store import Store

L4 = Gpu(index=0, uuid="GPU-aa", name="NVIDIA L4", memory_mib=23034)


@pytest.fixture
def l4(some_worker: WorkerInfo) -> WorkerInfo:
    return some_worker.model_copy(update={"gpus": (L4,), "device": "NVIDIA L4 (22 GiB)"})


@pytest.mark.parametrize(
    ("need", "told"),
    [
        ({}, None),
        (
            {"min_gpu_memory_gib": 40.0},
            "has what it needs, a GPU with 40 GiB of memory. There are: NVIDIA L4 (22 GiB).",
        ),
        ({"gpus": 2}, "has what it needs, 2 GPUs. There"),
        ({"gpus": 2, "min_gpu_memory_gib": 22.5}, "has what it needs, 2 GPUs with 22.5 GiB of memory each. There"),
    ],
)
def test_what_a_job_needs_and_nobody_has_is_told_with_what_there_is(
    l4: WorkerInfo, need: dict[str, Any], told: str | None
) -> None:
    said = why_none_takes(Compute(pool="cpu", **need), [l4])

    assert (said is None) if told is None else (said is not None and told in said)
    assert why_none_takes(Compute(pool="cpu", **need), []) is None


def test_workers_that_could_but_are_all_kept_from_jobs_are_told_with_their_reasons(l4: WorkerInfo) -> None:
    full = l4.model_copy(update={"hindrance": Hindrance(obstacle=Obstacle.UNHEALTHY, why="Only 0.10 GiB are left.")})

    said = why_none_takes(Compute(pool="cpu"), [full])

    assert said == "No worker of pool cpu can take jobs at present. host-a:1: Only 0.10 GiB are left."
    assert why_none_takes(Compute(pool="cpu"), [full, l4]) is None
    at_work = full.model_copy(update={"job_id": "demo-k3x7q"})
    assert why_none_takes(Compute(pool="cpu"), [at_work]) is None


def test_the_shell_says_it_of_a_job_and_in_the_list(  # noqa: PLR0917 - fixtures
    store: Store,
    valkey_url: str,
    run_spec: RunSpec,
    some_worker: WorkerInfo,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", valkey_url)
    compute = Compute(pool="cpu", min_gpu_memory_gib=40.0)
    spec = run_spec.model_copy(update={"project": run_spec.project.model_copy(update={"compute": compute})})
    job = store.submit(spec, submitted_by="ann", origin={}, request_id="r")
    store.announce(some_worker)
    words = "No live worker of pool cpu has what it needs, a GPU with 40 GiB of memory. There are: cpu (2 threads)."

    assert main(["jobs"]) == 0
    assert f"⚠️ {job.id}: {words}\n" in capsys.readouterr().out
    assert main(["job", job.id]) == 0
    assert f"waits       {words}\n" in capsys.readouterr().out
