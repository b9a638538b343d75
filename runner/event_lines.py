"""Events as they are stored and read back: a JSON object a line, each with its place in a job's history. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter

from runner.job_events import AnyEvent
from runner.reports import Record

_ANY_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(
    Annotated[AnyEvent, Field(discriminator="kind")], config=ConfigDict(defer_build=True)
)


MEASUREMENTS = ("metrics_logged", "loss_evaluated", "checkpoint_saved")
"""Kinds of which a long history keeps an even choice, always with the newest; all other kinds are milestones."""


class StoredEvent(Record):
    """An event in a job's history."""

    seq: int
    """1, 2, 3 … within one job, without a gap when they are given. One that is missing later was a measurement that has
    been thinned out; all others are there for as long as the job."""
    attempt: int
    """The attempt it belongs to, 0 before the first claim."""
    event: Annotated[AnyEvent, Field(discriminator="kind")]


def parse_event(line: str | bytes) -> AnyEvent:
    """Read one JSON object as an event.

    Raises:
        pydantic.ValidationError: It is not JSON, of no known kind, or has wrong fields.
    """
    return _ANY_EVENT.validate_json(line)
