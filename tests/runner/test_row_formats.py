from __future__ import annotations

from typing import Any

import pytest

from runner.layout import Layout, WrittenFormat
from runner.row_formats import ALL_COLUMNS, RowReader
from runner.spec import Columns

ASKED = {"role": "user", "content": "2 + 2?"}
ANSWERED = {"role": "assistant", "content": "4"}
RULE = {"role": "system", "content": "Be brief."}


def read(value: object, written: WrittenFormat | None = None, **columns: str) -> tuple[str, dict[str, Any]]:
    return RowReader(Layout(None, written, tuple(columns.items()))).read(1, value)


def refusal(value: object, written: WrittenFormat | None = None, **columns: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each test looks at the message
        read(value, written, **columns)
    return str(caught.value)


# --- what becomes what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "2 + 2?", "completion": "4", "id": 7}, {"prompt": "2 + 2?", "completion": "4"}),
        ({"messages": [ASKED, ANSWERED], "id": 7}, {"messages": [ASKED, ANSWERED]}),
        ({"text": "def f(): ..."}, {"text": "def f(): ..."}),
        ({"prompt": [RULE, ASKED], "completion": [ANSWERED]}, {"messages": [RULE, ASKED, ANSWERED]}),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, {"messages": [ASKED, ANSWERED]}),
        ({"instruction": "2 + 2?", "input": None, "output": "4", "text": "…"}, {"messages": [ASKED, ANSWERED]}),
        ({"instruction": "2 + 2?", "output": "4", "system": "Be brief."}, {"messages": [RULE, ASKED, ANSWERED]}),
        (
            {"instruction": "Add.", "input": "2 and 2", "output": "4"},
            {"messages": [{"role": "user", "content": "Add.\n\n2 and 2"}, ANSWERED]},
        ),
        (
            {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
            {"messages": [ASKED, ANSWERED]},
        ),
        (
            {"conversations": [{"from": "user", "value": "2 + 2?"}, {"from": "assistant", "value": "4"}] * 2},
            {"messages": [ASKED, ANSWERED, ASKED, ANSWERED]},
        ),
        (
            {
                "system": "Be brief.",
                "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "chatgpt", "value": "4"}],
            },
            {"messages": [RULE, ASKED, ANSWERED]},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]},
                    ANSWERED,
                ]
            },
            {"messages": [ASKED, ANSWERED]},
        ),
        # As Parquet has it: every turn has every key of any turn.
        ({"messages": [ASKED | {"name": None}, ANSWERED | {"tool_calls": None}]}, {"messages": [ASKED, ANSWERED]}),
    ],
)
def test_a_row_becomes_one_of_the_three_that_are_trained_on(row: dict[str, Any], expected: dict[str, Any]) -> None:
    row_format, found = read(row)
    assert found == expected
    assert row_format == {"prompt": "prompt_completion", "messages": "messages", "text": "text"}[next(iter(expected))]


def test_columns_are_found_under_the_names_that_the_catalog_gives() -> None:
    row = {"question": "2 + 2?", "answer": "4", "text": "something else"}
    expected = ("prompt_completion", {"prompt": "2 + 2?", "completion": "4"})
    assert read(row, prompt="question", completion="answer") == expected
    assert read(row, instruction="question", output="answer") == ("messages", {"messages": [ASKED, ANSWERED]})
    assert read({"conversations": [ASKED, ANSWERED]}, messages="conversations")[1] == {"messages": [ASKED, ANSWERED]}
    assert read({"prompt": "p", "completion": "c", "body": "b"}, text="body") == ("text", {"text": "b"})


def test_a_named_format_is_read_and_no_other() -> None:
    row = {"prompt": "2 + 2?", "completion": "4", "text": "2 + 2? 4"}
    assert read(row, "text") == ("text", {"text": "2 + 2? 4"})
    assert refusal(row, "alpaca") == ("has no 'instruction', which alpaca needs; found 'prompt', 'completion', 'text'")


def test_every_column_of_every_format_can_be_renamed() -> None:
    assert set(Columns.model_fields) == set(ALL_COLUMNS) - {"history"}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a"], "must be an object, found a list"),
        ({"question": "a"}, "or instruction + output or text; found 'question'"),
        ({}, "found no columns"),
        ({"prompt": "a", "completion": b"b"}, "'completion' must be text, found bytes"),
        ({"prompt": "a", "completion": float("nan")}, "'completion' must be text, found NaN"),
        ({"prompt": "a", "completion": [ANSWERED]}, "'prompt' must be a list of turns, found \"a\""),
        ({"prompt": [ASKED, ANSWERED, ASKED], "completion": [ANSWERED]}, "has an assistant turn in 'prompt'"),
        ({"prompt": [ASKED], "completion": [ASKED]}, "has no assistant turn with text"),
        ({"instruction": "a", "output": ""}, "'output' is empty"),
        ({"instruction": "a", "input": 3, "output": "b"}, "'input' must be text, found 3"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "has a 'history', which would get lost"),
        ({"conversations": "hi"}, "'conversations' must be a list of turns, found \"hi\""),
        ({"conversations": []}, "'conversations' must be a list of turns, found an empty list"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, 'turn 1 is from "tool"; known are system, human'),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "turn 1 is from a list; known are"),
        ({"conversations": [{"from": "gpt"}]}, "'value' of turn 1 must be text, found null"),
        ({"conversations": ["hi"]}, "turn 1 needs 'from' and 'value', found \"hi\""),
        ({"conversations": [ASKED]}, 'are read with columns = { messages = "conversations" }'),
        ({"conversations": [{"from": "human", "value": "a"}]}, "has no assistant turn with text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWERED]},
            "'content' of turn 1 holds a part of type \"image_url\"; only text can be trained on",
        ),
        ({"messages": [{"role": "user", "content": ["a"]}, ANSWERED]}, "'content' of turn 1 holds a part of type"),
        ({"messages": [ASKED, ANSWERED | {"weight": 0}]}, "turn 2 of 'messages' has weight 0"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "user, assistant, found 'role' \"tool\""),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_with_what_was_found(row: object, message: str) -> None:
    assert message in refusal(row)


def test_a_mapped_column_that_is_not_there_is_named_with_those_that_are() -> None:
    assert refusal({"questoin": "a", "answer": "b"}, prompt="question", completion="answer") == (
        "has no column 'question' for prompt; found 'questoin', 'answer'; did you mean 'questoin'?"
    )


def test_all_missing_columns_are_named_at_once() -> None:
    assert refusal({"questoin": "a", "anwser": "b"}, prompt="question", completion="answer") == (
        "has no column 'question' for prompt and no column 'answer' for completion; found 'questoin', 'anwser'"
        "; did you mean 'questoin'?; did you mean 'anwser'?"
    )


def test_with_mapped_columns_only_their_formats_are_asked_for() -> None:
    assert refusal({"question": "a", "text": "b"}, prompt="question") == (
        "must have prompt + completion; found 'question', 'text'"
    )


def test_the_first_good_row_decides_for_all() -> None:
    reader = RowReader(Layout())
    with pytest.raises(ValueError, match="'text' is empty"):
        reader.read(1, {"text": ""})
    reader.read(2, {"prompt": "a", "completion": "b"})
    with pytest.raises(ValueError, match=r"has no 'prompt', as row 2 is prompt_completion; found 'text'"):
        reader.read(3, {"text": "c"})
    with pytest.raises(ValueError, match="is a conversation, but row 2 is prompt and completion as text"):
        reader.read(4, {"prompt": [ASKED], "completion": [ANSWERED]})
