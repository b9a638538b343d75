"""The root message: one plan, its tasks moved by events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from bot.render.plan import STOP_ACTION, render_root
from bot.render.progress import render_progress
from bot.story import Story, tell_all
from bot.workspace.blocks import check_blocks
from runner.event_lines import StoredEvent
from runner.events import (
    ChildEvent,
    Evaluated,
    LossEvaluated,
    MetricsLogged,
    PhaseStarted,
    RunSucceeded,
    TrainingStarted,
)
from runner.job_events import (
    AnyEvent,
    FinalEvent,
    JobCancelled,
    JobClaimed,
    JobFailed,
    JobQueued,
    JobRequeued,
    JobSucceeded,
    StopRequested,
)
from runner.jobs import JobRecord
from runner.reports import Phase, TraitLoss
from runner.spec import Evaluation, RunSpec

AT = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
QUEUED = JobQueued(position=2, pool="cpu", at=AT)
CLAIMED = JobClaimed(worker="gpu-1:4711", host="gpu-1", device="cpu (2 threads)", attempt=1, at=AT)


@pytest.fixture
def job(demo_spec: RunSpec) -> JobRecord:
    return JobRecord(id="demo-k7x2q", spec=demo_spec, pool="cpu", submitted_by="U0ANN", submitted_at=AT)


def _story(job: JobRecord, events: Iterable[AnyEvent]) -> Story:
    return tell_all(job, [StoredEvent(seq=seq, attempt=1, event=event) for seq, event in enumerate(events, start=1)])


def _statuses(story: Story) -> dict[str, str]:
    plan = next(block for block in render_root(story).blocks if block["type"] == "plan")
    return {task["title"]: task["status"] for task in plan["tasks"]}


def test_a_queued_job_is_a_plan_with_a_stop_button(job: JobRecord) -> None:
    message = render_root(_story(job, [QUEUED]))
    head, plan, actions = message.blocks
    assert head == {
        "type": "section",
        "text": {
            "type": "mrkdwn",
            "text": "*demo* · `demo-k7x2q` · started by <@U0ANN>\nQueued in pool `cpu`",
            "verbatim": True,
        },
    }
    output = {
        "type": "rich_text",
        "elements": [{"type": "rich_text_section", "elements": [{"type": "text", "text": "position 2 when queued"}]}],
    }
    assert plan["title"] == "demo: queued"
    assert plan["tasks"][0] == {
        "type": "task_card",
        "task_id": "queued",
        "title": "Queued",
        "status": "in_progress",
        "output": output,
    }
    assert [task["title"] for task in plan["tasks"][1:]] == [
        "Versions",
        "Tokenizer & config",
        "Data",
        "Model",
        "Baseline",
        "Training",
        "Evaluation",
        "Adapter saved & verified",
    ]
    assert {task["status"] for task in plan["tasks"][1:]} == {"pending"}
    (button,) = actions["elements"]
    assert (button["action_id"], button["value"], button["style"]) == (STOP_ACTION, "demo-k7x2q", "danger")
    assert button["confirm"]["title"]["text"] == "Stop this job?"


def test_a_project_without_evaluation_has_no_such_tasks(job: JobRecord, run_spec: RunSpec) -> None:
    nothing = run_spec.project.model_copy(update={"evaluation": Evaluation(held_out_percentage=0)})
    spec = run_spec.model_copy(update={"project": nothing})
    statuses = _statuses(_story(job.model_copy(update={"spec": spec}), [QUEUED]))
    assert "Baseline" not in statuses
    assert "Evaluation" not in statuses


def test_a_project_that_only_holds_rows_out_is_evaluated_too(job: JobRecord, run_spec: RunSpec) -> None:
    loss = TraitLoss(trait_type="tone", loss=2.51234, rows=5, tokens=60, before=2.1, regressed=True)
    story = _story(
        job.model_copy(update={"spec": run_spec}),
        [QUEUED, CLAIMED, PhaseStarted(phase=Phase.EVALUATION), Evaluated(when="after", held_out=(loss,))],
    )
    plan = next(block for block in render_root(story).blocks if block["type"] == "plan")
    (task,) = [task for task in plan["tasks"] if task["title"] == "Evaluation"]
    assert task["output"]["elements"][0]["elements"][0]["text"] == "⚠️ tone 2.512"


def test_phases_move_through_the_plan(job: JobRecord) -> None:
    statuses = _statuses(_story(job, [QUEUED, CLAIMED, PhaseStarted(phase=Phase.MODEL)]))
    assert statuses == {
        "Queued": "complete",
        "Versions": "complete",
        "Tokenizer & config": "complete",
        "Data": "complete",
        "Model": "in_progress",
        "Baseline": "pending",
        "Training": "pending",
        "Evaluation": "pending",
        "Adapter saved & verified": "pending",
    }


def test_the_held_out_loss_stands_below_the_progress(job: JobRecord) -> None:
    measured = LossEvaluated(step=40, total_steps=120, loss=2.51234, best_step=40, best_loss=2.51234)
    events: list[AnyEvent] = [QUEUED, CLAIMED, TrainingStarted(total_steps=120, trainable_parameters=3), measured]
    worse = measured.model_copy(update={"step": 60, "loss": 2.6, "stops": True})

    assert render_progress(_story(job, events)).text.split("\n")[-1] == (
        "held-out loss 2.512 at step 40, the best so far"
    )
    assert render_progress(_story(job, [*events, worse])).text.split("\n")[-1] == (
        "held-out loss 2.6 at step 60 · best 2.512 at step 40 · no better for long enough, training stops early"
    )


def test_a_requeued_job_waits_again(job: JobRecord) -> None:
    lost: list[AnyEvent] = [
        QUEUED,
        CLAIMED,
        PhaseStarted(phase=Phase.TRAINING),
        JobRequeued(reason="host-lost", host="gpu-1"),
    ]
    statuses = _statuses(_story(job, lost))
    assert statuses["Queued"] == "in_progress"
    assert set(statuses.values()) == {"in_progress", "pending"}


@pytest.mark.parametrize(
    ("end", "standing"),
    [
        (JobFailed(code="model-not-found", message="No model."), "❌ Failed: `model-not-found`"),
        (JobCancelled(by="U0ANN", step=3), "Cancelled by <@U0ANN>"),
    ],
)
def test_an_end_before_success_marks_where_it_happened(end: FinalEvent, standing: str, job: JobRecord) -> None:
    story = _story(job, [QUEUED, CLAIMED, PhaseStarted(phase=Phase.MODEL), end])
    assert _statuses(story)["Model"] == "error"
    assert render_root(story).text.split("\n")[1] == standing


def test_success_completes_every_task_and_takes_the_button_away(
    job: JobRecord, good_run: tuple[ChildEvent, ...]
) -> None:
    last = good_run[-1]
    assert isinstance(last, RunSucceeded)
    end = JobSucceeded(summary=last.summary, adapter_path="/out", at=AT + timedelta(seconds=9))
    story = _story(job, [QUEUED, CLAIMED, *good_run, end])
    assert set(_statuses(story).values()) == {"complete"}
    assert [block["type"] for block in render_root(story).blocks] == ["section", "plan"]
    assert render_root(story).classic[1]["text"]["text"].split("\n") == [
        "● Queued · gpu-1 · cpu (2 threads)",
        "● Versions · current · differ from tested: peft",
        "● Tokenizer &amp; config · llama · LlamaConfig",
        "● Data · 80 rows",
        "● Model · 4-bit · 28 of 29 modules · 12.3 MB",
        "● Baseline · one-digit addition 2 %",
        "● Training · 120 steps · 54,321 trainable parameters",
        "● Evaluation · one-digit addition 100 %",
        "● Adapter saved &amp; verified · 2.0 MB",
    ]


def test_a_job_asked_to_stop_says_so_and_has_no_button(job: JobRecord) -> None:
    message = render_root(_story(job, [QUEUED, CLAIMED, StopRequested(by="U0ANN")]))
    assert "Stopping on `gpu-1`, asked by <@U0ANN>" in message.text
    assert "actions" not in [block["type"] for block in message.blocks]


def test_a_claimed_job_whose_child_is_silent_yet_is_starting(job: JobRecord) -> None:
    message = render_root(_story(job, [QUEUED, CLAIMED]))
    assert message.text.split("\n")[1] == "Starting on `gpu-1`"
    assert message.blocks[1]["title"] == "demo: starting"


def test_every_update_has_new_block_ids(job: JobRecord) -> None:
    first, second = render_root(_story(job, [QUEUED])), render_root(_story(job, [QUEUED, CLAIMED]))
    ids = [{block["block_id"] for block in message.blocks if "block_id" in block} for message in (first, second)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_the_root_message_is_accepted_at_every_event(job: JobRecord, good_run: tuple[ChildEvent, ...]) -> None:
    events = [QUEUED, CLAIMED, *good_run]
    for length in range(1, len(events) + 1):
        message = render_root(_story(job, events[:length]))
        check_blocks(list(message.blocks))
        check_blocks(list(message.classic), refused=("plan",))


def test_progress_shows_bar_loss_speed_and_time_left(job: JobRecord, good_run: tuple[ChildEvent, ...]) -> None:
    at_step_40 = next(index for index, event in enumerate(good_run) if isinstance(event, MetricsLogged))
    assert render_progress(_story(job, good_run[: at_step_40 + 1])).text.split("\n") == [
        "*Training* · step 40 of 120",
        "`██████░░░░░░░░░░░░░░` 33 %",
        "loss 0.125 · 5,100 tokens/s · about 8.0 s left",
    ]


def test_progress_of_a_resumed_attempt_begins_where_it_resumed(job: JobRecord) -> None:
    resumed = TrainingStarted(total_steps=120, resumed_from_step=60, trainable_parameters=54_321)
    assert render_progress(_story(job, [resumed])).text.split("\n") == [
        "*Training* · step 60 of 120 · resumed from step 60",
        "`██████████░░░░░░░░░░` 50 %",
        "54,321 trainable parameters",
    ]


def test_there_is_no_progress_before_training(job: JobRecord) -> None:
    with pytest.raises(ValueError, match="training_started"):
        render_progress(_story(job, [QUEUED]))
