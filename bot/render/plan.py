"""A job's root message: one plan whose tasks are the phases, edited in place. Pure.

Slack's clients fold a plan up again with every edit, so the line above it says on its own where the job stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bot.render.message import Block, Message, button, fallback, section
from bot.render.text import code, count, escape, figure, keep_start, megabytes, number, percent, person, plain
from bot.story import Story
from runner.job_events import JobCancelled, JobFailed, JobSucceeded
from runner.reports import Phase

STOP_ACTION = "stop_job"
"""Action id of the Stop button; its value is the job's id."""

Status = Literal["pending", "in_progress", "complete", "error"]
"""Slack's four; there is none for cancelled."""

_MARKS: dict[Status, str] = {"pending": "○", "in_progress": "◐", "complete": "●", "error": "✕"}


@dataclass(frozen=True, slots=True)
class _Task:
    task_id: str
    title: str
    phases: tuple[Phase, ...]
    output: Callable[[Story], str | None]
    """What came out of it, in a few words, None while nothing has."""


def _queued(story: Story) -> str | None:
    if story.claimed is not None:
        return f"{story.claimed.host} · {story.claimed.device}"
    return f"position {story.queued.position} when queued" if story.queued is not None else None


def _versions(story: Story) -> str | None:
    if story.versions is None:
        return None
    differing = [package.name for package in story.versions.packages if package.difference != "same"]
    told = f"differ from tested: {', '.join(differing)}" if differing else "as tested"
    return f"{story.versions.stack} · {told}"


def _config(story: Story) -> str | None:
    return f"{story.config.model_type} · {story.config.config_class}" if story.config is not None else None


def _model(story: Story) -> str | None:
    if story.model is None:
        return None
    receipt = story.model.receipt
    rung = {"4bit": "4-bit", "8bit": "8-bit", "none": "unquantized"}[receipt.rung]
    return (
        f"{rung} · {receipt.quantized_modules} of {receipt.linear_modules} modules · {megabytes(receipt.model_bytes)}"
    )


def _data(story: Story) -> str | None:
    return count(story.mix.rows, "row") if story.mix is not None else None


def _matches(story: Story, *, after: bool) -> str | None:
    evaluated = story.evaluation if after else story.baseline
    if evaluated is None:
        return None
    scores = [f"{one.dataset_name} {percent(one.share)}" for one in evaluated.exact_match]
    scores += [f"{'⚠️ ' if one.regressed else ''}{one.trait_type} {figure(one.loss)}" for one in evaluated.held_out]
    return " · ".join(scores) or count(len(evaluated.samples), "answer")


def _training(story: Story) -> str | None:
    if story.training is None:
        return None
    total = story.metrics.total_steps if story.metrics is not None else story.training.total_steps
    return f"{number(total)} steps · {number(story.training.trainable_parameters)} trainable parameters"


def _adapter(story: Story) -> str | None:
    return megabytes(story.saved.size_bytes) if story.saved is not None else None


_TASKS = (
    _Task("queued", "Queued", (), _queued),
    _Task("versions", "Versions", (Phase.VERSIONS,), _versions),
    _Task("config", "Tokenizer & config", (Phase.TOKENIZER, Phase.CONFIG), _config),
    _Task("data", "Data", (Phase.DATA,), _data),
    _Task("model", "Model", (Phase.MODEL,), _model),
    _Task("baseline", "Baseline", (Phase.BASELINE,), lambda story: _matches(story, after=False)),
    _Task("training", "Training", (Phase.TRAINING,), _training),
    _Task("evaluation", "Evaluation", (Phase.EVALUATION,), lambda story: _matches(story, after=True)),
    _Task("adapter", "Adapter saved & verified", (Phase.SAVING, Phase.VERIFYING), _adapter),
)
_EVALUATING = frozenset({"baseline", "evaluation"})


def render_root(story: Story) -> Message:
    """The message that a job's thread hangs from.

    The blocks' ids change with every event, as Slack asks for edited messages.
    """
    project = story.record.project
    headline = f"*{escape(project)}* · {code(story.record.id)} · started by {person(story.record.submitted_by)}"
    standing = _standing(story)
    tasks = [(task, _status(story, task), task.output(story)) for task in _tasks(story)]
    plan: Block = {
        "type": "plan",
        "block_id": f"plan-{story.seq}",
        "title": plain(f"{project}: {_plan_title(story)}"),
        "tasks": [_card(task, status, output) for task, status, output in tasks],
    }
    drawn = [
        f"{_MARKS[status]} {escape(task.title)}" + (f" · {escape(keep_start(output, 150))}" if output else "")
        for task, status, output in tasks
    ]
    buttons: list[Block] = [_stop_button(story)] if story.end is None and story.stop_requested is None else []
    return Message(
        text=fallback([headline, standing]),
        blocks=(section(f"{headline}\n{standing}"), plan, *buttons),
        classic=(section(f"{headline}\n{standing}"), section("\n".join(drawn)), *buttons),
    )


def _tasks(story: Story) -> list[_Task]:
    project = story.record.spec.project
    evaluation = project.evaluation
    asked = [share.held_out_percentage for trait in project.traits for share in trait.datasets]
    holds_out = any(evaluation.held_out_percentage if own is None else own for own in asked)
    evaluates = bool(evaluation.prompts or evaluation.exact_match or holds_out)
    return [task for task in _TASKS if evaluates or task.task_id not in _EVALUATING]


def _current(story: Story) -> _Task:
    if story.claimed is None or story.phase is None:
        return _TASKS[0]
    return next(task for task in _TASKS if story.phase in task.phases)


def _status(story: Story, task: _Task) -> Status:
    if isinstance(story.end, JobSucceeded):
        return "complete"
    current, position = _TASKS.index(_current(story)), _TASKS.index(task)
    if position < current:
        return "complete"
    if position > current:
        return "pending"
    if story.end is not None:
        return "error"
    # Claimed, and its child has not said a word yet: waiting is over, nothing else has begun.
    return "complete" if story.claimed is not None and story.phase is None else "in_progress"


def _standing(story: Story) -> str:  # noqa: PLR0911 - one sentence a state
    where = f" on {code(story.claimed.host)}" if story.claimed is not None else ""
    match story.end:
        case JobSucceeded():
            return "✅ Succeeded"
        case JobFailed():
            return f"❌ Failed: {code(story.end.code)}"
        case JobCancelled():
            return f"Cancelled by {person(story.end.by)}"
        case None:
            pass
    if story.stop_requested is not None:
        return f"Stopping{where}, asked by {person(story.stop_requested.by)}"
    if story.requeued is not None:
        return "Back in the queue"
    if story.claimed is None:
        return f"Queued in pool {code(story.record.pool)}"
    attempt = f" · attempt {story.claimed.attempt}" if story.claimed.attempt > 1 else ""
    return f"{escape(_doing(story))}{where}{attempt}"


def _plan_title(story: Story) -> str:
    match story.end:
        case JobSucceeded():
            return "succeeded"
        case JobFailed():
            return "failed"
        case JobCancelled():
            return "cancelled"
        case None:
            return "stopping" if story.stop_requested is not None else _doing(story).lower()


def _doing(story: Story) -> str:
    # Claimed, and its child has not said a word yet.
    return "Starting" if story.claimed is not None and story.phase is None else _current(story).title


def _card(task: _Task, status: Status, output: str | None) -> Block:
    card: Block = {"type": "task_card", "task_id": task.task_id, "title": task.title, "status": status}
    if output:
        card["output"] = {
            "type": "rich_text",
            "elements": [{"type": "rich_text_section", "elements": [{"type": "text", "text": plain(output)}]}],
        }
    return card


def _stop_button(story: Story) -> Block:
    confirm: Block = {
        "title": {"type": "plain_text", "text": "Stop this job?"},
        "text": {"type": "plain_text", "text": "It writes a checkpoint and ends as cancelled."},
        "confirm": {"type": "plain_text", "text": "Stop it"},
        "deny": {"type": "plain_text", "text": "Keep it"},
        "style": "danger",
    }
    stop = button("Stop", action_id=STOP_ACTION, value=story.record.id, style="danger", confirm=confirm)
    return {"type": "actions", "block_id": f"actions-{story.seq}", "elements": [stop]}
