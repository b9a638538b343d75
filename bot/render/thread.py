"""The replies of a job's thread, one a milestone: an event and the story so far in, a message out. Pure.

A resumed attempt passes the same stations again. What it reports is said again only where it differs from what the
thread says already; the plan shows all of it.
"""

from __future__ import annotations

import re

from bot.render.before_training import (
    render_config,
    render_data,
    render_model,
    render_rung_failed,
    render_versions,
    same_versions,
)
from bot.render.evaluation import render_baseline, render_evaluation, trait_name
from bot.render.message import Message, compose
from bot.render.progress import render_progress
from bot.render.text import (
    ERROR_LIMIT,
    code,
    count,
    duration,
    escape,
    figure,
    keep_end,
    keep_start,
    megabytes,
    number,
    person,
)
from bot.story import Story, tell
from runner.event_lines import StoredEvent
from runner.events import (
    AdapterVerified,
    BatchHalved,
    CheckpointChosen,
    ConfigLoaded,
    DataMixed,
    Evaluated,
    ModelLoaded,
    RungFailed,
    TrainingStarted,
    VersionsReported,
)
from runner.job_events import JobCancelled, JobClaimed, JobDeclined, JobFailed, JobQueued, JobRequeued, JobSucceeded
from runner.jobs import JobRecord
from runner.main_settings import main_settings
from runner.pools import Freeze
from runner.reports import (
    Resolved,
    RunSummary,
)

_CHANNEL_ID = re.compile(r"[CG][A-Z0-9]{2,}")


def render_milestone(  # noqa: C901, PLR0911, PLR0912 - one short case a kind of event
    story: Story,
    stored: StoredEvent,
    *,
    pool_is_served: bool = True,
    frozen: Freeze | None = None,
    kept: str | None = None,
) -> Message | None:
    """The reply that an event deserves, None where it only moves the plan or the progress message.

    Args:
        story: What the events before this one told.
        stored: The event.
        pool_is_served: Whether any live worker serves the job's pool; told with `job_queued`.
        frozen: Why nothing new starts at present; told with `job_queued`.
        kept: Why no live worker takes the job; told with `job_queued`.
    """
    match stored.event:
        case JobQueued() as event:
            return _queued(event, story.record, pool_is_served=pool_is_served, frozen=frozen, kept=kept)
        case JobClaimed() as event:
            return _claimed(event)
        case JobRequeued() as event:
            return _requeued(event)
        case JobDeclined() as event:
            return _declined(event, story.record.pool)
        case VersionsReported() as event:
            return None if same_versions(event, story.versions) else render_versions(event)
        case ConfigLoaded() as event:
            return render_config(event, story) if story.config is None else None
        case RungFailed() as event:
            told = any(event.failed.is_told_by(earlier) for earlier in story.failed_rungs)
            return None if told else render_rung_failed(event)
        case ModelLoaded() as event:
            told = story.model is not None and story.model.receipt.rung == event.receipt.rung
            return None if told else render_model(event)
        case DataMixed() as event:
            return None if story.mix is not None and story.mix.shares == event.shares else render_data(event)
        case CheckpointChosen() as event:
            return _chosen(event)
        case BatchHalved() as event:
            return compose([escape(event.announcement)])
        case Evaluated(when="before") as event:
            return render_baseline(event) if story.baseline is None else None
        case TrainingStarted():
            return render_progress(tell(story, stored)) if story.training is None else None
        case Evaluated() as event:
            return render_evaluation(event, story) if story.evaluation is None else None
        case AdapterVerified() as event:
            return _verified(event) if story.verified is None else None
        case JobSucceeded() as event:
            return _succeeded(event, story)
        case JobFailed() as event:
            return _failed(event, story)
        case JobCancelled() as event:
            return _cancelled(event, story)
        case _:
            return None


def render_refusal(job: JobRecord, refusal: str) -> Message:
    """A direct message to whoever started a job whose thread Slack refuses.

    Args:
        job: The job.
        refusal: Slack's error code.
    """
    channel = job.origin.get("channel", "")
    where = f"<#{channel}>" if _CHANNEL_ID.fullmatch(channel) else code(channel)
    return compose(
        [
            f"⚠️ Slack does not let me post about job {code(job.id)} in {where}: {code(refusal)}",
            "The job itself goes on. Invite me there with `/invite`, and its thread appears within minutes.",
            f"Until then: `/qlora status {escape(job.id)}`",
        ]
    )


def is_progress(story: Story, stored: StoredEvent) -> bool:
    """Whether this event's reply is the message that later progress is edited into."""
    return isinstance(stored.event, TrainingStarted) and story.training is None


def frozen_line(freeze: Freeze) -> str:
    """Why a job that waits does not start."""
    return f"⛔ Frozen by {person(freeze.by)}, nothing new starts: {escape(keep_end(freeze.reason, ERROR_LIMIT))}"


def kept_line(why: str) -> str:
    """Why no live worker takes a job that waits."""
    return f"⚠️ {escape(keep_end(why, ERROR_LIMIT))}"


def _queued(
    event: JobQueued, job: JobRecord, *, pool_is_served: bool, frozen: Freeze | None, kept: str | None
) -> Message:
    following = " · next to run" if event.position == 1 else ""
    lines = [f"Queued in pool {code(event.pool)} · position {event.position}{following}"]
    if job.retry_of is not None:
        start = "goes on from its newest checkpoint" if job.resume else "begins again"
        lines.append(f"A retry of {code(job.retry_of)} that {start}")
    if frozen is not None:
        lines.append(frozen_line(frozen))
    if not pool_is_served:
        start = code(f"python -m runner worker --pool {event.pool}")
        lines.append(f"⚠️ No worker serves this pool right now. The job waits until one does: {start}")
    if kept is not None:
        lines.append(kept_line(kept))
    lines.append(f"*Settings* {' · '.join(map(_setting, main_settings(job.spec)))}")
    return compose(lines)


def _setting(setting: Resolved) -> str:
    told = f"{escape(setting.name)} {escape(keep_start(setting.value, 60))}"
    return f"*{told}* (override)" if setting.origin == "override" else told


def _claimed(event: JobClaimed) -> Message:
    attempt = f" · attempt {event.attempt}" if event.attempt > 1 else ""
    return compose(
        [f"Claimed on host {code(event.host)} by worker {code(event.worker)} · {escape(event.device)}{attempt}"]
    )


def _requeued(event: JobRequeued) -> Message:
    where = f" in phase {event.phase}" if event.phase is not None else ""
    happened = {
        "host-lost": f"⚠️ The worker on host {code(event.host)} was lost{where}.",
        "worker-stopped": f"The worker on host {code(event.host)} was stopped.",
    }[event.reason]
    if event.step:
        goes_on = f"resumes from the checkpoint of step {number(event.step)}"
    else:
        goes_on = "starts again, from a checkpoint if its host left one,"
    return compose([f"{happened} The job is back in the queue and {goes_on} once a worker claims it."])


def _declined(event: JobDeclined, pool: str) -> Message:
    lines = [f"Host {code(event.host)} leaves the job to others: {escape(keep_end(event.message, ERROR_LIMIT))}"]
    if not event.others:
        waits = {"data-differs": "whose data match", "checkpoint-elsewhere": "that has the checkpoint"}[event.reason]
        lines.append(f"⚠️ No other worker of pool {code(pool)} is left. The job waits for a host {waits}.")
    return compose(lines)


def _chosen(event: CheckpointChosen) -> Message:
    if event.step == event.newest_step:
        return compose([f"Resumes from the checkpoint of step {number(event.step)}"])
    begins = f"goes on from that of step {number(event.step)}" if event.step else "starts again from the beginning"
    where = f"The checkpoint of step {number(event.newest_step)} lies on host {code(event.newest_host)}"
    return compose([f"⚠️ {where}, which this host does not see: the job {begins}"])


def _verified(event: AdapterVerified) -> Message:
    base = figure(event.base_difference)
    differ = f"differ from the trained model's by at most {figure(event.max_difference)}"
    if not event.max_difference:
        differ = "are exactly the trained model's"
    return compose(
        [
            f"*Adapter verified* in a fresh process · {duration(event.duration_s)}",
            f"Its logits {differ}; they differ from the base model's by {base}",
        ]
    )


def _succeeded(event: JobSucceeded, story: Story) -> Message:
    summary = event.summary
    if story.first_claimed_at is not None:
        took = f"{duration((event.at - story.first_claimed_at).total_seconds())} from claim to published adapter"
    else:
        took = f"{duration(summary.duration_s)} from loading to verified adapter"
    attempts = f", attempt {story.claimed.attempt}" if story.claimed is not None and story.claimed.attempt > 1 else ""
    host = f" on host {code(story.claimed.host)}" if story.claimed is not None else ""
    learned = (
        f"Training loss {figure(summary.loss_first)} → {figure(summary.loss_last)} in {count(summary.steps, 'step')}"
    )
    if summary.stopped_early_of is not None:
        learned += f" of {number(summary.stopped_early_of)}, stopped early"
    if summary.adapter_step is not None:
        learned += f" · the adapter is that of step {number(summary.adapter_step)}, with {_lowest(summary)}"
    if summary.peak_bytes is not None:
        learned += f" · {megabytes(summary.peak_bytes)} of memory at most"
    if summary.guard_interceptions:
        learned += f" · {count(summary.guard_interceptions, 'dict assignment')} over the config turned away"
    worse = [trait_name(one) for one in story.evaluation.regressed] if story.evaluation is not None else []
    return compose(
        [
            f"✅ *Succeeded* · {took}, {duration(summary.train_s)} of it training{attempts}",
            learned,
            *([f"⚠️ {summary.overfitted.told}"] if summary.overfitted is not None else []),
            *([f"⚠️ Worse than the base model on held-out rows: {', '.join(worse)}"] if worse else []),
            f"Adapter: {code(event.adapter_path, 1_000)}{host}",
        ]
    )


def _lowest(summary: RunSummary) -> str:
    at = f", {figure(summary.best.loss)}" if summary.best is not None else ""
    return f"the lowest held-out loss{at}"


def _failed(event: JobFailed, story: Story) -> Message:
    step = f" at step {number(story.step)}" if story.step else ""
    lines = [f"❌ *Failed*{step} · {code(event.code)}", escape(keep_end(event.message, ERROR_LIMIT))]
    if event.hint:
        lines.append(f"What to do: {escape(keep_end(event.hint, ERROR_LIMIT))}")
    if story.claimed is not None:
        lines.append(f"Its log, on host {code(story.claimed.host)}: {code(f'python -m runner logs {story.record.id}')}")
    return compose(lines)


def _cancelled(event: JobCancelled, story: Story) -> Message:
    where = f" on host {code(story.claimed.host)}" if story.claimed is not None else ""
    step = f" at step {number(event.step)}" if event.step is not None else " before it began to train"
    lines = [f"*Cancelled* by {person(event.by)}{step}"]
    if event.checkpoint:
        lines.append(f"Checkpoint: {code(event.checkpoint, 1_000)}{where}")
    return compose(lines)
