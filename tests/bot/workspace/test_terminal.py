from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bot.workspace.records import Message
from bot.workspace.state import BOT_USER, CHANNEL, YOU
from bot.workspace.terminal import ThreadPrinter, render_message


def message(text: str = "", **fields: Any) -> Message:
    fields = {"ts": "1700000000.000100", "user": BOT_USER.id, "posted_seq": 1, "changed_seq": 1} | fields
    return Message(channel=CHANNEL.id, text=text, **fields)


def body(shown: Message) -> list[str]:
    return [line.removeprefix("  ") for line in render_message(shown, color=False).splitlines()[1:]]


def mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text}


def rich(*texts: str) -> dict[str, Any]:
    items = [{"type": "rich_text_section", "elements": [{"type": "text", "text": text}]} for text in texts]
    return {"type": "rich_text", "elements": [{"type": "rich_text_list", "style": "bullet", "elements": items}]}


def test_slacks_markup_becomes_plain_text() -> None:
    source = (
        f"*bold* _it_ ~gone~ `a &lt; b` <@{YOU.id}> <https://x.y|link> <https://x.y> <!here> :white_check_mark:"
        " snake_case_name"
    )
    assert body(message(source)) == ["bold it gone a < b @you link (https://x.y) https://x.y @here ✅ snake_case_name"]


def test_a_code_block_keeps_its_lines() -> None:
    assert body(message("log:\n```\na\n  b\n```")) == ["log:", "    a", "      b"]


def test_the_head_line_says_who_and_what_became_of_it() -> None:
    shown = message("x", visible_to=YOU.id, edited_ts="1700000001.000000")
    head = render_message(shown, color=False).splitlines()[0]
    assert head.startswith("qlora  ")
    assert head.endswith("  only visible to you  edited")


def test_every_kind_of_block_is_shown() -> None:
    blocks: tuple[dict[str, Any], ...] = (
        {"type": "header", "text": {"type": "plain_text", "text": "Job"}},
        {"type": "section", "text": mrkdwn("*Loss*"), "fields": [mrkdwn("a"), mrkdwn("b")]},
        {"type": "context", "elements": [mrkdwn("host"), {"type": "plain_text", "text": "cpu"}]},
        {"type": "divider"},
        {"type": "markdown", "text": "# md"},
        rich("one", "two"),
        {
            "type": "table",
            "rows": [
                [{"type": "raw_text", "text": "step"}, {"type": "raw_text", "text": "loss"}],
                [{"type": "raw_text", "text": "1"}, {"type": "raw_number", "value": 2.5}],
            ],
        },
        {
            "type": "actions",
            "elements": [
                {"type": "button", "text": {"type": "plain_text", "text": label}} for label in ("Stop", "Versions")
            ],
        },
        {"type": "video"},
    )
    assert body(message("fallback", blocks=blocks)) == [
        "Job",
        "Loss",
        "a",
        "b",
        "host · cpu",
        "─" * 24,
        "# md",
        "• one",
        "• two",
        "step  loss",
        "1     2.5",
        "[Stop]  [Versions]",
        "(video)",
    ]


def test_a_plan_shows_its_tasks_with_their_status() -> None:
    statuses = ("complete", "in_progress", "pending", "error")
    tasks: list[dict[str, Any]] = [{"task_id": name, "title": name.title(), "status": name} for name in statuses]
    tasks[1]["details"] = rich("step 3 of 10")
    plan = {"type": "plan", "title": "Phases", "tasks": tasks}
    assert body(message(blocks=(plan,))) == [
        "Phases",
        "✓ Complete",
        "◐ In_Progress",
        "    • step 3 of 10",
        "○ Pending",
        "✗ Error",
    ]


def test_colour_is_used_when_asked_for() -> None:
    assert "\x1b[" in render_message(message("*bold*"), color=True)
    assert "\x1b[" not in render_message(message("*bold*"), color=False)


def test_long_lines_are_not_lost_when_piped() -> None:
    words = [f"word{number}" for number in range(200)]
    assert " ".join(body(message(" ".join(words)))).split() == words


def test_of_an_edited_message_only_the_changed_lines_are_printed() -> None:
    printer = ThreadPrinter(color=False)
    printer.render(message("step 1\nloss 2.0"))
    edited = message("step 2\nloss 2.0", edited_ts="1700000001.000000")
    assert (printer.render(edited) or "").splitlines()[1:] == ["  step 2"]
    assert printer.render(edited) is None


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=st.sampled_from("ab *_~`<>|@#!&;:\n/"), max_size=60))
def test_no_markup_is_too_odd_to_be_shown(text: str) -> None:
    assert render_message(message(text), color=False).startswith("qlora  ")
