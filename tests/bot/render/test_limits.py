"""Every reply within what a workspace accepts, whatever text it carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import pytest

from bot.render.message import Message
from bot.workspace.blocks import check_blocks
from runner.events import (
    CheckpointChosen,
    ChildEvent,
    DataMixed,
    Evaluated,
    RungFailed,
    TrainingStarted,
    VersionsReported,
)
from runner.job_events import AnyEvent, JobCancelled, JobClaimed, JobDeclined, JobFailed, JobQueued, JobRequeued
from runner.reports import FailedRung, Sample, TraitLoss

AT = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
CLAIMED = JobClaimed(worker="gpu-1:4711", host="gpu-1", device="cpu (2 threads)", attempt=1, at=AT)
Render = Callable[[Iterable[AnyEvent]], list[Message]]


HOSTILE = "<!channel> & `x` *b* \n" * 400
"""About 9,000 characters that would ping everybody."""


@pytest.fixture
def hostile_run(good_run: tuple[ChildEvent, ...]) -> list[AnyEvent]:
    """Every kind of reply, with text from elsewhere as long and as bad as it gets."""
    by_kind = {event.kind: event for event in good_run}
    versions, mix = by_kind["versions_reported"], by_kind["data_mixed"]
    assert isinstance(versions, VersionsReported)
    assert isinstance(mix, DataMixed)
    shares = tuple(
        mix.shares[0].model_copy(update={"trait_type": HOSTILE, "dataset_name": HOSTILE, "dataset_id": number})
        for number in range(150)
    )
    losses = tuple(
        TraitLoss(trait_type=f"{number} {HOSTILE}", loss=2.0, rows=3, tokens=9, before=1.0, regressed=True)
        for number in range(20)
    )
    samples = tuple(Sample(prompt=f"{number} {HOSTILE}", completion=HOSTILE) for number in range(20))
    hostile_defect = versions.defects[0].model_copy(
        update={"affected": HOSTILE, "cause": HOSTILE, "remedy": HOSTILE, "severity": "cannot-work"}
    )
    return [
        JobQueued(position=1, pool=HOSTILE),
        JobClaimed(worker=HOSTILE, host=HOSTILE, device=HOSTILE[:500], attempt=2),
        versions.model_copy(update={"device": HOSTILE, "defects": (hostile_defect, hostile_defect)}),
        by_kind["tokenizer_loaded"].model_copy(update={"workaround": HOSTILE, "pad_token": HOSTILE}),
        by_kind["config_loaded"].model_copy(update={"architecture": HOSTILE, "revision": HOSTILE}),
        RungFailed(failed=FailedRung(rung="4bit", error_class="X", reason=HOSTILE), next_rung="8bit"),
        by_kind["model_loaded"],
        mix.model_copy(update={"shares": shares, "warnings": (HOSTILE,) * 20}),
        Evaluated(when="before", samples=samples),
        TrainingStarted(total_steps=10, trainable_parameters=3),
        Evaluated(when="after", samples=samples, held_out=losses),
        by_kind["adapter_verified"],
        JobRequeued(reason="host-lost", host=HOSTILE),
        CheckpointChosen(step=0, newest_step=3, newest_host=HOSTILE),
        JobDeclined(reason="data-differs", host=HOSTILE, message=HOSTILE, others=False),
        JobFailed(code=HOSTILE, message=HOSTILE, hint=HOSTILE),
        JobCancelled(by=HOSTILE, step=3, checkpoint=HOSTILE),
    ]


def test_text_from_elsewhere_pings_nobody_and_stays_within_the_limits(
    render: Render, hostile_run: list[AnyEvent]
) -> None:
    messages = render(hostile_run)
    assert len(hostile_run) - 2 == len(messages)  # the tokenizer and a baseline without scores make none
    for message in messages:
        assert "<!" not in message.text
        assert 0 < len(message.text) <= 4000
        check_blocks(list(message.blocks))
        check_blocks(list(message.classic or message.blocks))
        assert "<!" not in str([block for block in message.blocks if block["type"] != "table"])
        assert "<!" not in str(message.classic)


def test_a_long_error_keeps_its_end(render: Render) -> None:
    (message,) = render([JobFailed(code="training", message="start " + "x" * 5000 + " the cause")])
    assert message.text.endswith(" the cause")
    assert "start" not in message.text


def test_every_reply_of_a_good_run_is_accepted(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    for message in render([JobQueued(position=1, pool="cpu"), CLAIMED, *good_run]):
        check_blocks(list(message.blocks))
        check_blocks(list(message.classic or message.blocks), refused=("table", "plan"))
