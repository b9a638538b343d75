from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import pytest

from bot.render.message import Message
from bot.render.thread import render_milestone
from bot.story import Story, tell
from runner.event_lines import StoredEvent
from runner.job_events import AnyEvent
from runner.jobs import JobRecord
from runner.spec import RunSpec

AT = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
Render = Callable[[Iterable[AnyEvent]], list[Message]]


@pytest.fixture
def job(demo_spec: RunSpec) -> JobRecord:
    return JobRecord(id="demo-k7x2q", spec=demo_spec, pool="cpu", submitted_by="U0ANN", submitted_at=AT)


@pytest.fixture
def render(job: JobRecord) -> Render:
    """Every reply that a row of events makes."""

    def render(events: Iterable[AnyEvent]) -> list[Message]:
        story, messages = Story(job), []
        for seq, event in enumerate(events, start=1):
            stored = StoredEvent(seq=seq, attempt=1, event=event)
            message = render_milestone(story, stored)
            story = tell(story, stored)
            if message is not None:
                messages.append(message)
        return messages

    return render
