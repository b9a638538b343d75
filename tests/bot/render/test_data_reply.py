"""The reply that tells which rows are trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bot.render.message import Message
from runner.events import ChildEvent, DataMixed
from runner.job_events import AnyEvent

Render = Callable[[Iterable[AnyEvent]], list[Message]]


def _lines(message: Message) -> list[str]:
    return message.text.split("\n")


def _of(run: tuple[ChildEvent, ...], *kinds: type[ChildEvent]) -> list[ChildEvent]:
    return [event for event in run if isinstance(event, kinds)]


def test_the_data_mix_tells_rows_used_of_rows_there(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    (message,) = render(_of(good_run, DataMixed))
    rows = [[cell["text"] for cell in row] for row in message.blocks[1]["rows"]]
    assert rows == [
        ["Trait", "Dataset", "Rows used", "Trained tokens"],
        ["arithmetic", "one-digit addition (1)", "80 of 100", "1,234 · 100 %"],
    ]
    assert _lines(message)[-1] == "80 rows · longest 23 tokens"


def test_a_table_that_slack_would_not_take_whole_says_how_much_is_missing(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    (mixed,) = _of(good_run, DataMixed)
    assert isinstance(mixed, DataMixed)
    (message,) = render([mixed.model_copy(update={"shares": mixed.shares * 102})])
    assert len(message.blocks[1]["rows"]) == 100
    assert _lines(message)[-2:] == ["… and 4 more rows", "80 rows · longest 23 tokens"]


def test_what_is_wrong_with_the_rows_is_told_below_them(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    (mixed,) = _of(good_run, DataMixed)
    (message,) = render([mixed.model_copy(update={"warnings": ("3 rows of <a> are cut.", "1 row is left out.")})])
    assert _lines(message)[-3:] == [
        "80 rows · longest 23 tokens",
        "⚠️ 3 rows of &lt;a&gt; are cut.",
        "⚠️ 1 row is left out.",
    ]


def test_a_trait_of_several_datasets_is_added_up(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    (mixed,) = _of(good_run, DataMixed)
    assert isinstance(mixed, DataMixed)
    one = mixed.shares[0].model_copy(update={"held_out_rows": 4, "max_rows": 80, "total_tokens": 2468})
    other = one.model_copy(update={"trait_type": "tone", "dataset_id": 2, "trained_tokens": 617})
    (message,) = render([mixed.model_copy(update={"shares": (one, one, other), "rows": 240})])
    rows = [[cell["text"] for cell in row] for row in message.blocks[1]["rows"]]
    share = ["arithmetic", "one-digit addition (1)", "80 of 100, at most 80 · 4 held out", "1,234 · 40 %"]
    assert rows[1:] == [
        share,
        share,
        ["arithmetic", "together", "160 · 8 held out", "2,468 · 80 %"],
        ["tone", "one-digit addition (2)", "80 of 100, at most 80 · 4 held out", "617 · 20 %"],
    ]
    assert _lines(message)[-1] == "240 rows · longest 23 tokens · 42 % of 7,404 tokens carry loss"


def test_a_table_wider_than_a_phone_becomes_a_paragraph_a_row(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    (message,) = render(_of(good_run, DataMixed))
    drawn = message.classic[1]["text"]["text"]
    assert drawn.splitlines() == [
        "```",
        "arithmetic",
        "  Dataset: one-digit addition (1)",
        "  Rows used: 80 of 100",
        "  Trained tokens: 1,234 · 100 %",
        "```",
    ]
    assert drawn in message.text
