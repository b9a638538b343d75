from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from slack_sdk import WebClient

from bot.render.progress import render_progress
from bot.render.thread import render_milestone
from bot.story import Story, tell
from bot.workspace.server import LocalWorkspace
from runner.events import (
    AdapterSaved,
    AdapterVerified,
    CheckpointSaved,
    ChildEvent,
    ConfigLoaded,
    DataMixed,
    Evaluated,
    MetricsLogged,
    ModelLoaded,
    PhaseStarted,
    RunSucceeded,
    TokenizerLoaded,
    TrainingStarted,
    VersionsReported,
)
from runner.jobs import JobRecord, WorkerInfo
from runner.reports import DefectReport, ExactMatch, PackageVersion, Phase, Sample
from runner.spec import Evaluation, RunSpec
from runner.store import Claim, Store
from tests.bot.stage import Stage, finish
from tests.examples import RECEIPT, SHARE, SUMMARY

AT = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def workspace() -> Iterator[LocalWorkspace]:
    """A local workspace in memory, patient with acknowledgements because test machines are slow."""
    with LocalWorkspace(ack_timeout_s=20.0) as running:
        yield running


@pytest.fixture
def web_client(workspace: LocalWorkspace) -> WebClient:
    """slack_sdk's own client with the bot token, without retries."""
    return WebClient(token=workspace.bot_token, base_url=workspace.api_url, retry_handlers=[])


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Polls until something holds, for at most 20 s."""

    def poll(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < deadline, "it never came to hold"
            time.sleep(0.01)

    return poll


# --- jobs to tell of -------------------------------------------------------------------------------------------------


@pytest.fixture
def demo_spec(run_spec: RunSpec) -> RunSpec:
    """The snapshot of `run_spec`, with answers and scores before and after."""
    evaluation = Evaluation(prompts=("2+3=",), exact_match=(1,))
    project = run_spec.project.model_copy(update={"evaluation": evaluation})
    return run_spec.model_copy(update={"project": project})


@pytest.fixture
def worker_info() -> WorkerInfo:
    """A live worker of pool `cpu`."""
    return WorkerInfo(
        name="gpu-1:4711",
        host="gpu-1",
        pool="cpu",
        device="cpu (2 threads)",
        stack="current",
        started_at=AT,
        last_seen_at=AT,
    )


@pytest.fixture
def good_run() -> tuple[ChildEvent, ...]:
    """What the child of a run without trouble writes, at one fixed time."""
    packages = (
        PackageVersion(name="transformers", installed="5.23.0", tested="5.23.0", difference="same", stacks=()),
        PackageVersion(name="peft", installed="0.21.1", tested="0.21.2", difference="patch", stacks=()),
    )
    before = ExactMatch(dataset_id=1, dataset_name="one-digit addition", correct=1, total=55)
    events: tuple[ChildEvent, ...] = (
        PhaseStarted(phase=Phase.VERSIONS, at=AT),
        VersionsReported(
            stack="current",
            packages=packages,
            python="3.11.7",
            device="cpu (2 threads)",
            defects=(
                DefectReport(
                    code="a-defect",
                    severity="worked-around",
                    affected="peft < 0.21.2",
                    cause="It is old.",
                    remedy="We wait.",
                    url="https://example.com/1",
                ),
            ),
            at=AT,
        ),
        PhaseStarted(phase=Phase.TOKENIZER, at=AT),
        TokenizerLoaded(
            tokenizer_class="LlamaTokenizerFast", vocab_size=32_000, pad_token="<pad>", pad_choice="existing", at=AT
        ),
        PhaseStarted(phase=Phase.CONFIG, at=AT),
        ConfigLoaded(
            model_type="llama",
            source="config.json",
            config_class="LlamaConfig",
            architecture="LlamaForCausalLM",
            at=AT,
        ),
        PhaseStarted(phase=Phase.DATA, at=AT),
        DataMixed(shares=(SHARE,), rows=80, longest_tokens=23, truncated_rows=0, at=AT),
        PhaseStarted(phase=Phase.MODEL, at=AT),
        ModelLoaded(receipt=RECEIPT, at=AT),
        PhaseStarted(phase=Phase.BASELINE, at=AT),
        Evaluated(when="before", samples=(Sample(prompt="2+3=", completion="x"),), exact_match=(before,), at=AT),
        PhaseStarted(phase=Phase.TRAINING, at=AT),
        TrainingStarted(total_steps=120, trainable_parameters=54_321, at=AT),
        *(
            MetricsLogged(
                step=step,
                total_steps=120,
                epoch=step / 40,
                loss=5.0 / step,
                learning_rate=1e-3,
                tokens_per_s=5100.4,
                eta_s=(120 - step) / 10,
                at=AT,
            )
            for step in (40, 80)
        ),
        CheckpointSaved(step=80, path="/runs/checkpoint-80", at=AT),
        MetricsLogged(
            step=120, total_steps=120, epoch=3.0, loss=0.0211, learning_rate=0.0, tokens_per_s=5200, eta_s=0.0, at=AT
        ),
        PhaseStarted(phase=Phase.EVALUATION, at=AT),
        Evaluated(
            when="after",
            samples=(Sample(prompt="2+3=", completion="5"),),
            exact_match=(before.model_copy(update={"correct": 55}),),
            at=AT,
        ),
        PhaseStarted(phase=Phase.SAVING, at=AT),
        AdapterSaved(path="/runs/adapter", size_bytes=2_000_000, at=AT),
        PhaseStarted(phase=Phase.VERIFYING, at=AT),
        AdapterVerified(max_difference=1e-5, base_difference=3.2, duration_s=4.0, at=AT),
        RunSucceeded(summary=SUMMARY, adapter_path="/runs/adapter", at=AT),
    )
    return events


# --- threads to look at ----------------------------------------------------------------------------------------------


@pytest.fixture
def stage(workspace: LocalWorkspace, web_client: WebClient, store: Store, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A workspace without a thread. Waits begin at 0.1 s; what Slack asks for is waited for all the same."""
    monkeypatch.setattr("bot.job_thread.FIRST_WAIT_S", 0.1)
    return Stage(workspace, web_client, store)


@pytest.fixture
def claim(stage: Stage, demo_spec: RunSpec, worker_info: WorkerInfo) -> Claim:
    """A job that a worker has just claimed."""
    stage.submit(demo_spec, "wish-1")
    claim = stage.store.claim("cpu", worker_info)
    assert claim is not None
    return claim


@pytest.fixture
def job(stage: Stage, claim: Claim, good_run: tuple[ChildEvent, ...]) -> JobRecord:
    """A job that has gone the whole way before anybody reported it."""
    return finish(stage.store, claim, good_run)


@pytest.fixture
def expected(store: Store, job: JobRecord) -> list[str]:
    """The texts of the finished job's thread below its root message."""
    story, texts = Story(job), []
    for stored in store.events(job.id):
        message = render_milestone(story, stored, pool_is_served=False)
        story = tell(story, stored)
        if message is not None:
            texts.append(message.text)
    return [render_progress(story).text if text.startswith("*Training*") else text for text in texts]
