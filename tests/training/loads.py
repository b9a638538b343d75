"""Loads that tests make: one that holds and one that fails, with all that was told on the way."""

from pathlib import Path

import pytest

from runner.errors import TrainingError
from runner.events import ChildEvent, ModelLoaded, RungFailed
from runner.reports import LoadReceipt
from runner.spec import RunSpec
from runner.training.loading.protected_load import protected_load


def load(spec: RunSpec, root: Path) -> tuple[LoadReceipt, list[ChildEvent]]:
    """Load and leave at once; the receipt and all events."""
    events: list[ChildEvent] = []
    with protected_load(spec, models_root=root, emit=events.append) as loaded:
        return loaded.receipt, events


def failing_load(spec: RunSpec, root: Path) -> tuple[TrainingError, list[ChildEvent]]:
    """Try to load; the error that ends it and all events."""
    events: list[ChildEvent] = []
    with pytest.raises(TrainingError) as raised, protected_load(spec, models_root=root, emit=events.append):
        pass
    assert raised.value.hint
    return raised.value, events


def announcements(events: list[ChildEvent]) -> list[str]:
    """What the ladder said, in order."""
    return [event.announcement for event in events if isinstance(event, RungFailed | ModelLoaded)]


def failed_rungs(events: list[ChildEvent]) -> list[RungFailed]:
    """The rungs that did not hold."""
    return [event for event in events if isinstance(event, RungFailed)]
