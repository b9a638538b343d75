"""What a job's events tell so far: folded one by one into one immutable record. Pure; no Slack, no Redis.

The thread, the plan and `/qlora status` are all rendered from this, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from runner.event_lines import StoredEvent
from runner.events import (
    AdapterSaved,
    AdapterVerified,
    ConfigLoaded,
    DataMixed,
    Evaluated,
    LossEvaluated,
    MetricsLogged,
    ModelLoaded,
    PhaseStarted,
    RungFailed,
    TokenizerLoaded,
    TrainingStarted,
    VersionsReported,
)
from runner.job_events import (
    AnyEvent,
    FinalEvent,
    JobCancelled,
    JobClaimed,
    JobDeclined,
    JobFailed,
    JobQueued,
    JobRequeued,
    JobSucceeded,
    StopRequested,
)
from runner.jobs import JobRecord
from runner.reports import FailedRung, Phase


@dataclass(frozen=True, slots=True)
class Story:
    """A job as its events tell it. What an earlier attempt told stays until a later one tells it again."""

    record: JobRecord
    """The record as it was when the story began: spec, requester and origin, which never change."""
    seq: int = 0
    """Number of the last event folded in."""
    queued: JobQueued | None = None
    claimed: JobClaimed | None = None
    """The last claim; None again once its attempt was lost."""
    first_claimed_at: datetime | None = None
    requeued: JobRequeued | JobDeclined | None = None
    """The last requeue or refusal of a host, None again once somebody has claimed the job."""
    stop_requested: StopRequested | None = None
    phase: Phase | None = None
    """The station of the current attempt."""
    versions: VersionsReported | None = None
    tokenizer: TokenizerLoaded | None = None
    config: ConfigLoaded | None = None
    failed_rungs: tuple[FailedRung, ...] = ()
    """Every rung that did not hold, in any attempt, each told once."""
    model: ModelLoaded | None = None
    mix: DataMixed | None = None
    baseline: Evaluated | None = None
    training: TrainingStarted | None = None
    metrics: MetricsLogged | None = None
    held_out: LossEvaluated | None = None
    """The last measurement on held-out rows while training."""
    evaluation: Evaluated | None = None
    saved: AdapterSaved | None = None
    verified: AdapterVerified | None = None
    end: FinalEvent | None = None

    @property
    def step(self) -> int | None:
        """Optimizer steps done, as far as is known; None before training."""
        if self.metrics is not None:
            return self.metrics.step
        return self.training.resumed_from_step if self.training is not None else None


def tell(story: Story, stored: StoredEvent) -> Story:
    """The story with one more event."""
    return replace(_tell(story, stored.event), seq=stored.seq)


def tell_all(record: JobRecord, events: Iterable[StoredEvent]) -> Story:
    """The story of a job from its beginning."""
    story = Story(record)
    for stored in events:
        story = tell(story, stored)
    return story


def _tell(story: Story, event: AnyEvent) -> Story:  # noqa: C901, PLR0911, PLR0912 - one short case a kind of event
    match event:
        case JobQueued():
            return replace(story, queued=event)
        case JobClaimed():
            first = story.first_claimed_at or event.at
            return replace(story, claimed=event, first_claimed_at=first, requeued=None, phase=None)
        case JobRequeued() | JobDeclined():
            return replace(story, requeued=event, claimed=None, phase=None)
        case StopRequested():
            return replace(story, stop_requested=event)
        case PhaseStarted():
            return replace(story, phase=event.phase)
        case VersionsReported():
            return replace(story, versions=event)
        case TokenizerLoaded():
            return replace(story, tokenizer=event)
        case ConfigLoaded():
            return replace(story, config=event)
        case RungFailed():
            known = any(event.failed.is_told_by(told) for told in story.failed_rungs)
            return story if known else replace(story, failed_rungs=(*story.failed_rungs, event.failed))
        case ModelLoaded():
            return replace(story, model=event)
        case DataMixed():
            return replace(story, mix=event)
        case Evaluated(when="before"):
            return replace(story, baseline=event)
        case Evaluated():
            return replace(story, evaluation=event)
        case TrainingStarted():
            resumed = bool(event.resumed_from_step)
            return replace(
                story,
                training=event,
                metrics=story.metrics if resumed else None,
                held_out=story.held_out if resumed else None,
            )
        case MetricsLogged():
            return replace(story, metrics=event)
        case LossEvaluated():
            return replace(story, held_out=event)
        case AdapterSaved():
            return replace(story, saved=event)
        case AdapterVerified():
            return replace(story, verified=event)
        case JobSucceeded() | JobFailed() | JobCancelled():
            return replace(story, end=event)
        case _:
            # A halved batch has its reply and no place in the plan; a checkpoint needs neither. The child's own last
            # line: the store tells the same as job_succeeded, job_failed or job_requeued.
            return story
