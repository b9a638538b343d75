"""Answers to commands, and errors, for the one person who asked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from bot.commands import EXAMPLES, USAGE
from bot.render.message import Message, compose, compose_with_table
from bot.render.progress import describe_metrics
from bot.render.text import ERROR_LIMIT, bar, code, count, duration, escape, figure, keep_end, number, person
from bot.render.thread import frozen_line, kept_line
from bot.service import (
    Answer,
    HelpAnswer,
    JobList,
    JobStatus,
    Overview,
    ProjectList,
    Queue,
    StackList,
    Started,
    StopAnswer,
)
from bot.story import Story
from runner.errors import Problem, QLoRAError, SpecError
from runner.jobs import JobRecord, JobState, WorkerInfo

SHOWN_WORKERS = 10
SHOWN_PROBLEMS = 40
PROBLEM_LIMIT = 220
SHOWN_PROJECTS = 40

WHAT_IT_DOES = {
    "start": "check a project and queue a job; `key=value` changes a setting for this job",
    "stop": "stop a job; it writes a checkpoint first",
    "status": "the queue, what runs and who works; or one job",
    "jobs": "the latest jobs",
    "projects": "what can be started",
    "versions": "tested version stacks, and the workers' own",
    "help": "this list",
}


def render_answer(answer: Answer, *, now: datetime) -> Message:  # noqa: PLR0911 - one line an answer
    """Put an answer into words.

    Args:
        answer: What the service found or did.
        now: The time, for ages.
    """
    match answer:
        case Started():
            return _started(answer)
        case StopAnswer():
            return _stopped(answer.job)
        case Overview():
            return _overview(answer, now)
        case JobStatus():
            return _job_status(answer, now)
        case JobList():
            return _job_list(answer.jobs, now)
        case ProjectList():
            return _project_list(answer)
        case StackList():
            return _stack_list(answer)
        case HelpAnswer():
            return render_help()


def render_error(error: QLoRAError) -> Message:
    """An error that the requester can do something about, every problem of a project included."""
    lines = [f"⚠️ {escape(keep_end(error.message, ERROR_LIMIT))}"]
    if isinstance(error, SpecError):
        lines[0] += " Nothing was queued."
        lines += [f"• {_problem(problem)}" for problem in error.problems[:SHOWN_PROBLEMS]]
        if len(error.problems) > SHOWN_PROBLEMS:
            lines.append(f"… and {count(len(error.problems) - SHOWN_PROBLEMS, 'more problem')}")
    if error.hint:
        lines.append(escape(keep_end(error.hint, ERROR_LIMIT)))
    return compose(lines)


def render_bug(reference: str) -> Message:
    """What a requester is told of an error that nobody foresaw; the log has the rest under the same reference."""
    return compose(
        [
            "⚠️ Something went wrong in the bot itself, and the command was not carried out to its end.",
            f"The bot's log tells more; ask its operator to look for {code(reference)}.",
        ]
    )


def render_help() -> Message:
    """Every command, with examples."""
    lines = [f"`/qlora {escape(typed)}` — {WHAT_IT_DOES[verb]}" for verb, typed in USAGE.items()]
    lines.append("For example: " + ", ".join(f"`/qlora {example}`" for example in EXAMPLES.values()))
    lines.append("A job may be named by the start of its id. Inside its thread, mention me with `stop` or `status`.")
    return compose(lines)


def _problem(problem: Problem) -> str:
    place = problem.file
    if problem.line is not None:
        place += f":{problem.line}" + (f":{problem.column}" if problem.column is not None else "")
    path = f" {code(problem.path)}" if problem.path else ""
    return f"{code(place)}{path} {escape(keep_end(problem.message, PROBLEM_LIMIT))}"


def _started(answer: Started) -> Message:
    job = answer.job
    place = f" · position {answer.position}" if answer.position is not None else ""
    lines = [f"Queued {code(job.id)} in pool {code(job.pool)}{place}. Its thread opens in this channel."]
    if job.spec.overrides:
        changed = ", ".join(code(f"{key}={value}") for key, value in sorted(job.spec.overrides.items()))
        lines.append(f"Changed for this job: {changed}")
    if job.spec.unchecked:
        names = ", ".join(code(job.spec.datasets[dataset_id].name) for dataset_id in job.spec.unchecked)
        lines.append(f"Rows that only the host can check, before training: {names}")
    if answer.frozen is not None:
        lines.append(frozen_line(answer.frozen))
    if not answer.pool_is_served:
        start = code(f"python -m runner worker --pool {job.pool}")
        lines.append(f"⚠️ No worker serves pool {code(job.pool)} right now; it waits until one does: {start}")
    if answer.kept is not None:
        lines.append(kept_line(answer.kept))
    return compose(lines)


def _stopped(job: JobRecord) -> Message:
    if job.state is JobState.CANCELLED:
        return compose([f"Cancelled {code(job.id)}; it was not running."])
    return compose([f"Stopping {code(job.id)}: it writes a checkpoint and ends as cancelled."])


def _overview(answer: Overview, now: datetime) -> Message:
    lines = [frozen_line(answer.frozen)] if answer.frozen is not None else []
    lines.append(f"*Running* · {len(answer.running)}" if answer.running else "*Running* · nothing")
    lines += [_running_line(story, now) for story in answer.running]
    lines += _queue_lines(answer.queues, now)
    lines += _worker_lines(answer.workers, {drain.host for drain in answer.drained})
    lines += [
        f"⛔ Host {code(drain.host)} takes no new jobs, drained by {person(drain.by)} · {_age(drain.at, now)}"
        for drain in answer.drained
    ]
    return compose(lines)


def _running_line(story: Story, now: datetime) -> str:
    job = story.record
    since = f" · {duration((now - job.started_at).total_seconds())}" if job.started_at is not None else ""
    stopping = " · stopping" if job.state is JobState.STOPPING else ""
    return f"• {code(job.id)} on {code(job.host or '?')}{since}{stopping} · {_where_it_stands(story)}"


def _where_it_stands(story: Story) -> str:
    if story.training is not None and story.metrics is not None:
        total = story.metrics.total_steps
        return f"step {number(story.metrics.step)} of {number(total)} · {describe_metrics(story.metrics)}"
    return str(story.phase) if story.phase is not None else "starting"


def _queue_lines(queues: Sequence[Queue], now: datetime) -> list[str]:
    if not queues:
        return ["*Queued* · nothing"]
    lines = []
    for queue in queues:
        lines.append(f"*Queued* in pool {code(queue.pool)} · {queue.length}")
        for position, job in enumerate(queue.jobs, start=1):
            lines.append(f"{position}. {code(job.id)} by {person(job.submitted_by)} · {_age(job.submitted_at, now)}")
        if queue.length > len(queue.jobs):
            lines.append(f"… and {queue.length - len(queue.jobs)} more")
    return lines


def _worker_lines(workers: Iterable[WorkerInfo], drained: set[str]) -> list[str]:
    pools: dict[str, list[WorkerInfo]] = {}
    for worker in workers:
        pools.setdefault(worker.pool, []).append(worker)
    if not pools:
        return ["*Workers* · none. Start one on a GPU host: `python -m runner worker`"]
    lines = []
    for pool, members in sorted(pools.items()):
        lines.append(f"*Workers* of pool {code(pool)} · {len(members)}")
        for worker in members:
            doing = code(worker.job_id) if worker.job_id else "drained" if worker.host in drained else "idle"
            lines.append(f"• {code(worker.name)} · {escape(worker.device)} · {doing}")
    return lines


def _job_status(answer: JobStatus, now: datetime) -> Message:
    job, story = answer.job, answer.story
    lines = [f"{code(job.id)} · *{job.state}* · by {person(job.submitted_by)} · {_age(job.submitted_at, now)}"]
    if answer.position is not None:
        lines.append(f"Position {answer.position} in pool {code(job.pool)}")
    if job.host is not None:
        lines.append(f"Host {code(job.host)} · attempt {job.attempt}")
    if story.training is not None and not job.is_final:
        done, total = story.step or 0, story.training.total_steps
        lines.append(f"`{bar(done, total)}` {_where_it_stands(story)}")
    elif not job.is_final and story.phase is not None:
        lines.append(f"Phase {story.phase}")
    if job.summary is not None:
        lines.append(f"Training loss {figure(job.summary.loss_first)} → {figure(job.summary.loss_last)}")
    if job.adapter_path is not None:
        lines.append(f"Adapter: {code(job.adapter_path, 1_000)}")
    if job.error_message is not None:
        lines.append(f"{code(job.error_code or 'error')} {escape(keep_end(job.error_message, ERROR_LIMIT))}")
        if job.error_hint:
            lines.append(f"What to do: {escape(keep_end(job.error_hint, ERROR_LIMIT))}")
    return compose(lines)


def _job_list(jobs: Sequence[JobRecord], now: datetime) -> Message:
    if not jobs:
        return compose(["No jobs yet. `/qlora projects` lists what can be started."])
    rows = [("Job", "State", "Pool", "Submitted", "Result")]
    rows += [(job.id, str(job.state), job.pool, _age(job.submitted_at, now), _result(job)) for job in jobs]
    return compose_with_table(["*Latest jobs*"], rows)


def _result(job: JobRecord) -> str:
    if job.summary is not None:
        return f"loss {figure(job.summary.loss_first)} → {figure(job.summary.loss_last)}"
    return job.error_code or "—"


def _project_list(answer: ProjectList) -> Message:
    if not answer.projects:
        return compose(["There is no project file yet. `projects/README.md` tells how to add one."])
    lines = ["*Projects*"]
    for project in answer.projects[:SHOWN_PROJECTS]:
        if project.error is None:
            description = f" — {escape(project.description)}" if project.description else ""
            lines.append(f"• {code(project.name)}{description}")
        else:
            lines.append(f"• {code(project.name)} — ⚠️ {count(len(project.error.problems), 'problem')}:")
            lines += [f"    {_problem(problem)}" for problem in project.error.problems[:3]]
            if len(project.error.problems) > 3:  # noqa: PLR2004 - `/qlora start` shows all of them
                lines.append(f"    … `/qlora start {escape(project.name)}` shows all")
    if len(answer.projects) > SHOWN_PROJECTS:
        lines.append(f"… and {len(answer.projects) - SHOWN_PROJECTS} more")
    return compose(lines)


def _stack_list(answer: StackList) -> Message:
    stacks = sorted(answer.stacks.items())
    names = list(dict.fromkeys(library for _, pins in stacks for library in pins))
    rows = [("Library", *(name for name, _ in stacks))]
    rows += [(library, *(pins.get(library, "—") for _, pins in stacks)) for library in names]
    below = [
        f"{code(worker.name)} · pool {code(worker.pool)} · nearest stack {code(worker.stack)}"
        for worker in answer.workers[:SHOWN_WORKERS]
    ]
    return compose_with_table(["*Tested version stacks*"], rows, below or ["No worker is alive right now."])


def _age(at: datetime, now: datetime) -> str:
    return f"{duration(max(0.0, (now - at).total_seconds()))} ago"
