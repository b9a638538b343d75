from __future__ import annotations

from typing import Any

import pytest

from bot.workspace.blocks import check_blocks
from bot.workspace.errors import SlackError


def mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text}


def plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text}


def rich(text: str) -> dict[str, Any]:
    return {
        "type": "rich_text",
        "elements": [{"type": "rich_text_section", "elements": [{"type": "text", "text": text}]}],
    }


def button(**fields: Any) -> dict[str, Any]:
    return {"type": "button", "text": plain("Stop"), "action_id": "stop", **fields}


def actions(*elements: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "actions", "elements": list(elements), **fields}


def plan(*tasks: dict[str, Any]) -> dict[str, Any]:
    return {"type": "plan", "title": "Phases", "tasks": list(tasks)}


def task(task_id: str = "load", status: str = "pending", **fields: Any) -> dict[str, Any]:
    return {"type": "task_card", "task_id": task_id, "title": "Load", "status": status, **fields}


def cells(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "raw_text", "text": text} for text in texts]


SECTION = {"type": "section", "text": mrkdwn("x")}
DIVIDER = {"type": "divider"}

GOOD: dict[str, list[dict[str, Any]]] = {
    "section with everything": [{**SECTION, "fields": [plain("a")], "accessory": button(), "block_id": "b"}],
    "section of 3000 characters": [{"type": "section", "text": mrkdwn("x" * 3000)}],
    "header of 150 characters": [{"type": "header", "text": plain("x" * 150)}],
    "context with image and text": [
        {"type": "context", "elements": [{"type": "image", "image_url": "http://x/y", "alt_text": "y"}, mrkdwn("a")]}
    ],
    "button with value, style and confirm": [
        actions(button(value="v", style="danger", confirm={"title": plain("Sure?"), "text": plain("It ends.")}))
    ],
    "equal action ids in two blocks": [actions(button()), actions(button())],
    "plan with every status": [
        plan(*(task(name, name) for name in ("pending", "in_progress", "complete", "error"))),
    ],
    "plan with details and output": [plan(task(details=rich("step 3"), output=rich("done")))],
    "task cards alone": [task()],
    "table": [{"type": "table", "rows": [cells("a", "b"), cells("1", "2")], "column_settings": [{"align": "right"}]}],
    "markdown": [{"type": "markdown", "text": "# x"}],
    "rich text": [rich("x")],
    "50 blocks": [DIVIDER] * 50,
}

BAD: dict[str, tuple[list[Any], str]] = {
    "51 blocks": ([DIVIDER] * 51, "no more than 50 items allowed [json-pointer:/blocks]"),
    "a block that is no object": (["x"], "must be an object [json-pointer:/blocks/0]"),
    "an unknown type": ([{"type": "data_table"}], "unsupported type: data_table [json-pointer:/blocks/0]"),
    "a type for modals only": (
        [{"type": "alert", "text": plain("x")}],
        "unsupported type: alert [json-pointer:/blocks/0]",
    ),
    "a field that does not exist": (
        [{**SECTION, "txt": 1}],
        "invalid additional property: txt [json-pointer:/blocks/0]",
    ),
    "a section without text": ([{"type": "section"}], "missing required field: text [json-pointer:/blocks/0]"),
    "a section of 3001 characters": (
        [{"type": "section", "text": mrkdwn("x" * 3001)}],
        "must be less than 3001 characters [json-pointer:/blocks/0/text/text]",
    ),
    "an empty text": (
        [{"type": "section", "text": mrkdwn("")}],
        "must be more than 0 characters [json-pointer:/blocks/0/text/text]",
    ),
    "11 fields": (
        [{"type": "section", "fields": [plain("x")] * 11}],
        "no more than 10 items allowed [json-pointer:/blocks/0/fields]",
    ),
    "a header of 151 characters": (
        [{"type": "header", "text": plain("x" * 151)}],
        "must be less than 151 characters [json-pointer:/blocks/0/text/text]",
    ),
    "a header in mrkdwn": (
        [{"type": "header", "text": mrkdwn("x")}],
        "must be a plain_text object [json-pointer:/blocks/0/text]",
    ),
    "emoji flag on mrkdwn": (
        [{"type": "section", "text": {**mrkdwn("x"), "emoji": True}}],
        "invalid additional property: emoji [json-pointer:/blocks/0/text]",
    ),
    "11 context elements": (
        [{"type": "context", "elements": [mrkdwn("x")] * 11}],
        "no more than 10 items allowed [json-pointer:/blocks/0/elements]",
    ),
    "a button label of 76 characters": (
        [actions(button(text=plain("x" * 76)))],
        "must be less than 76 characters [json-pointer:/blocks/0/elements/0/text/text]",
    ),
    "a button with an unknown style": (
        [actions(button(style="green"))],
        "must be a valid enum value: primary, danger [json-pointer:/blocks/0/elements/0/style]",
    ),
    "a button value of 2001 characters": (
        [actions(button(value="x" * 2001))],
        "must be less than 2001 characters [json-pointer:/blocks/0/elements/0/value]",
    ),
    "an action id of 256 characters": (
        [actions(button(action_id="x" * 256))],
        "must be less than 256 characters [json-pointer:/blocks/0/elements/0/action_id]",
    ),
    "an action id twice in a block": (
        [actions(button(), button())],
        "`action_id` 'stop' already exists for another element [json-pointer:/blocks/0/elements/1/action_id]",
    ),
    "no elements": ([actions()], "no less than 1 items allowed [json-pointer:/blocks/0/elements]"),
    "26 buttons": (
        [actions(*(button(action_id=str(number)) for number in range(26)))],
        "no more than 25 items allowed [json-pointer:/blocks/0/elements]",
    ),
    "a block id of 256 characters": (
        [{**DIVIDER, "block_id": "x" * 256}],
        "must be less than 256 characters [json-pointer:/blocks/0/block_id]",
    ),
    "a block id twice": (
        [{**DIVIDER, "block_id": "b"}] * 2,
        "`block_id` 'b' already exists [json-pointer:/blocks/1/block_id]",
    ),
    "status completed": (
        [plan(task(status="completed"))],
        "must be a valid enum value: pending, in_progress, complete, error [json-pointer:/blocks/0/tasks/0/status]",
    ),
    "a task without a title": (
        [plan({"type": "task_card", "task_id": "a", "status": "pending"})],
        "missing required field: title [json-pointer:/blocks/0/tasks/0]",
    ),
    "a task's details as text": (
        [plan(task(details=mrkdwn("x")))],
        "must be a rich_text object [json-pointer:/blocks/0/tasks/0/details]",
    ),
    "a task id twice": (
        [plan(task(), task())],
        "`task_id` 'load' already exists [json-pointer:/blocks/0/tasks/1/task_id]",
    ),
    "a plan without title": ([{"type": "plan"}], "missing required field: title [json-pointer:/blocks/0]"),
    "a plan beside a task card": (
        [plan(task()), task("other")],
        "plan and task_card are mutually exclusive [json-pointer:/blocks]",
    ),
    "a table of 101 rows": (
        [{"type": "table", "rows": [cells("x")] * 101}],
        "no more than 100 items allowed [json-pointer:/blocks/0/rows]",
    ),
    "a table of 21 columns": (
        [{"type": "table", "rows": [cells(*"x" * 21)]}],
        "no more than 20 items allowed [json-pointer:/blocks/0/rows/0]",
    ),
    "a table cell of another type": (
        [{"type": "table", "rows": [[mrkdwn("x")]]}],
        "must be a raw_text, raw_number or rich_text object [json-pointer:/blocks/0/rows/0/0]",
    ),
    "an empty table cell": (
        [{"type": "table", "rows": [cells("")]}],
        "must be more than 0 characters [json-pointer:/blocks/0/rows/0/0/text]",
    ),
    "two tables": (
        [{"type": "table", "rows": [cells("x")]}] * 2,
        "only_one_table_allowed [json-pointer:/blocks]",
    ),
    "markdown over 12000 characters together": (
        [{"type": "markdown", "text": "x" * 7000}, {"type": "markdown", "text": "x" * 5001}],
        "markdown blocks must be less than 12001 characters together [json-pointer:/blocks]",
    ),
    "an empty rich text": (
        [rich("")],
        "must be more than 0 characters [json-pointer:/blocks/0/elements/0/elements/0/text]",
    ),
    "an unknown part of a rich text": (
        [{"type": "rich_text", "elements": [{"type": "paragraph", "elements": []}]}],
        "unsupported rich_text element [json-pointer:/blocks/0/elements/0]",
    ),
}


@pytest.mark.parametrize("blocks", GOOD.values(), ids=GOOD)
def test_blocks_within_the_limits_pass(blocks: list[dict[str, Any]]) -> None:
    check_blocks(blocks)


@pytest.mark.parametrize(("blocks", "finding"), BAD.values(), ids=BAD)
def test_blocks_that_slack_refuses_are_refused_with_their_place(blocks: list[Any], finding: str) -> None:
    with pytest.raises(SlackError) as caught:
        check_blocks(blocks)
    assert caught.value.body() == {
        "ok": False,
        "error": "invalid_blocks",
        "errors": [finding],
        "response_metadata": {"messages": [f"[ERROR] {finding}"]},
    }


def test_every_finding_is_reported_at_once() -> None:
    with pytest.raises(SlackError) as caught:
        check_blocks([{"type": "section"}, {"type": "nonsense"}, plan(task(status="done"))])
    assert len(caught.value.messages) == 3


def test_blocks_must_be_a_list() -> None:
    with pytest.raises(SlackError, match="invalid_blocks_format"):
        check_blocks({"type": "divider"})


def test_too_much_text_in_all_blocks_together_is_refused() -> None:
    with pytest.raises(SlackError, match="msg_blocks_too_long"):
        check_blocks([{"type": "section", "text": mrkdwn("x" * 3000)}] * 4)


def test_a_refused_type_counts_as_unknown() -> None:
    with pytest.raises(SlackError, match="unsupported type: plan"):
        check_blocks([plan(task())], refused={"plan"})
