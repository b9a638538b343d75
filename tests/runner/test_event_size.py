"""Events that are too large for Redis: shortened, saying so, and still what they were."""

from __future__ import annotations

import pytest

from runner.event_size import MOST_BYTES, within_size
from runner.events import ChildEvent, DataMixed, Evaluated, MetricsLogged, RunFailed
from runner.job_events import JobFailed
from runner.reports import Sample
from tests.examples import SHARE


def size(event: ChildEvent | JobFailed) -> int:
    return len(event.model_dump_json().encode())


def test_a_long_text_keeps_its_ends_and_says_what_is_missing() -> None:
    event = RunFailed(code="internal", message="begin " + "x" * 1_000_000 + " end", hint="Look there.")

    short = within_size(event)

    assert size(short) <= MOST_BYTES
    assert short.message.startswith("begin xxx")
    assert short.message.endswith("xxx end")
    assert " … [995914 characters left out] … " in short.message
    assert (short.code, short.hint, short.at) == (event.code, event.hint, event.at)


def test_an_event_of_usual_size_stays_as_it_is() -> None:
    for event in (
        RunFailed(code="internal", message="m" * 8000),
        MetricsLogged(step=1, total_steps=2, epoch=0.1, loss=1.0, learning_rate=0.1, tokens_per_s=1.0, eta_s=1.0),
    ):
        assert within_size(event) is event


@pytest.mark.parametrize(
    "event",
    [
        DataMixed(shares=(SHARE,), rows=1, longest_tokens=1, truncated_rows=0, warnings=("w" * 500,) * 5000),
        DataMixed(shares=(SHARE,) * 3000, rows=1, longest_tokens=1, truncated_rows=0),
        Evaluated(when="after", samples=(Sample(prompt="p" * 9000, completion="🙂" * 9000),) * 60),
        RunFailed(code="c" * 50_000, message="\x00" * 200_000, hint="ü" * 200_000),
        JobFailed(code="internal", message="\\" * 100_000),
    ],
)
def test_whatever_is_large_fits(event: ChildEvent | JobFailed) -> None:
    short = within_size(event)

    assert size(short) <= MOST_BYTES
    assert type(event).model_validate_json(short.model_dump_json()) == short


def test_a_long_list_of_texts_says_how_many_are_missing() -> None:
    event = DataMixed(shares=(), rows=1, longest_tokens=1, truncated_rows=0, warnings=("w" * 200,) * 5000)

    warnings = within_size(event).warnings

    assert warnings[0] == warnings[-1] == "w" * 200
    assert [text for text in warnings if "left out" in text] == ["… [4990 left out] …"]
