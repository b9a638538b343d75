"""Block Kit, checked as strictly as Slack checks it. Pure.

Types that this project does not use and that Slack rolls out in phases (`data_table`, `card`, `container`, …) count as
unsupported, as they do in a workspace that has not got them yet.
Source: docs.slack.dev/reference/block-kit, and `facts` of the sizes that its pages leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from bot.workspace.elements import Checker, check_element, check_rich_text, check_text
from bot.workspace.errors import SlackError

MESSAGE_BLOCKS = 50
VIEW_BLOCKS = 100
MARKDOWN_CHARACTERS = 12_000
TABLE_CHARACTERS = 10_000
TOTAL_CHARACTERS = 12_000
BLOCK_CHARACTERS = 20
"""What each block adds to its text in that total. Slack documents neither; measured by others between 10.6 and 12.2 k:
https://github.com/slackapi/bolt-js/issues/2509 and #2867."""
TASK_STATUSES = ("pending", "in_progress", "complete", "error")
MODAL_ONLY = ("alert",)


def check_blocks(
    blocks: object, *, refused: Collection[str] = (), limit: int = MESSAGE_BLOCKS, modal: bool = False
) -> None:
    """Refuse what Slack refuses.

    Args:
        blocks: What the caller sent, decoded.
        refused: Types that an injected fault makes this workspace not know.
        limit: Most blocks, 50 in a message and 100 in a view.
        modal: Whether types that only modals show are permitted.

    Raises:
        SlackError: `invalid_blocks` with every finding, `invalid_blocks_format`, or `msg_blocks_too_long`.
    """
    if not isinstance(blocks, list):
        raise SlackError("invalid_blocks_format")
    checker = Checker()
    if len(blocks) > limit:
        checker.add(f"no more than {limit} items allowed", "/blocks")
    known = set(BLOCKS) - set(refused) - (set() if modal else set(MODAL_ONLY))
    seen: set[str] = set()
    for index, block in enumerate(blocks):
        at = f"/blocks/{index}"
        if not isinstance(block, dict):
            checker.add("must be an object", at)
        elif block.get("type") not in known:
            checker.add(f"unsupported type: {block.get('type')}", at)
        else:
            _check_block(checker, block, at, seen)
    _check_together(checker, [block for block in blocks if isinstance(block, dict)])
    if checker.findings:
        raise SlackError("invalid_blocks", checker.findings)
    if not modal and _characters(blocks) + BLOCK_CHARACTERS * len(blocks) > TOTAL_CHARACTERS:
        raise SlackError("msg_blocks_too_long")


def _check_block(checker: Checker, block: dict[str, Any], at: str, seen: set[str]) -> None:
    fields, check = BLOCKS[block["type"]]
    checker.known_fields(block, ("type", "block_id", *fields), at)
    block_id = block.get("block_id")
    if block_id is not None and checker.string(block_id, f"{at}/block_id", 255):
        if block_id in seen:
            checker.add(f"`block_id` {block_id!r} already exists", f"{at}/block_id")
        seen.add(block_id)
    check(checker, block, at)


def _check_together(checker: Checker, blocks: Sequence[dict[str, Any]]) -> None:
    types = [block.get("type") for block in blocks]
    if "plan" in types and "task_card" in types:
        checker.add("plan and task_card are mutually exclusive", "/blocks")
    if types.count("table") > 1:
        checker.add("only_one_table_allowed", "/blocks")
    markdown = sum(len(str(block.get("text", ""))) for block in blocks if block.get("type") == "markdown")
    if markdown > MARKDOWN_CHARACTERS:
        checker.add(f"markdown blocks must be less than {MARKDOWN_CHARACTERS + 1} characters together", "/blocks")


def _characters(node: object) -> int:
    if isinstance(node, dict):
        return sum(
            len(value) if key in ("text", "title") and isinstance(value, str) else _characters(value)
            for key, value in node.items()
        )
    return sum(_characters(item) for item in node) if isinstance(node, list) else 0


# --- one check per type ----------------------------------------------------------------------------------------------


def _section(checker: Checker, block: dict[str, Any], at: str) -> None:
    if "text" not in block and "fields" not in block:
        checker.add("missing required field: text", at)
    if "text" in block:
        check_text(checker, block["text"], f"{at}/text", 3000)
    if "fields" in block and checker.array(block["fields"], f"{at}/fields", 10):
        for index, field in enumerate(block["fields"]):
            check_text(checker, field, f"{at}/fields/{index}", 2000)
    if "accessory" in block:
        check_element(checker, block["accessory"], f"{at}/accessory", set())


def _header(checker: Checker, block: dict[str, Any], at: str) -> None:
    if checker.required(block, "text", at):
        check_text(checker, block["text"], f"{at}/text", 150, kinds=("plain_text",))


def _divider(checker: Checker, block: dict[str, Any], at: str) -> None:
    """Nothing to check."""


def _context(checker: Checker, block: dict[str, Any], at: str) -> None:
    if checker.required(block, "elements", at) and checker.array(block["elements"], f"{at}/elements", 10):
        for index, element in enumerate(block["elements"]):
            place = f"{at}/elements/{index}"
            if isinstance(element, dict) and element.get("type") == "image":
                _image(checker, element, place)
            else:
                check_text(checker, element, place, 3000)


def _actions(checker: Checker, block: dict[str, Any], at: str) -> None:
    if checker.required(block, "elements", at) and checker.array(block["elements"], f"{at}/elements", 25):
        seen: set[str] = set()
        for index, element in enumerate(block["elements"]):
            check_element(checker, element, f"{at}/elements/{index}", seen)


def _image(checker: Checker, block: dict[str, Any], at: str) -> None:
    if "image_url" not in block and "slack_file" not in block:
        checker.add("missing required field: image_url", at)
    if "image_url" in block:
        checker.string(block["image_url"], f"{at}/image_url", 3000)
    if checker.required(block, "alt_text", at):
        checker.string(block["alt_text"], f"{at}/alt_text", 2000)
    if "title" in block:
        check_text(checker, block["title"], f"{at}/title", 2000, kinds=("plain_text",))


def _markdown(checker: Checker, block: dict[str, Any], at: str) -> None:
    if checker.required(block, "text", at):
        checker.string(block["text"], f"{at}/text", MARKDOWN_CHARACTERS)


def _rich_text(checker: Checker, block: dict[str, Any], at: str) -> None:
    check_rich_text(checker, block, at)


def _input(checker: Checker, block: dict[str, Any], at: str) -> None:
    if checker.required(block, "label", at):
        check_text(checker, block["label"], f"{at}/label", 2000, kinds=("plain_text",))
    if checker.required(block, "element", at):
        check_element(checker, block["element"], f"{at}/element", set())
    if "hint" in block:
        check_text(checker, block["hint"], f"{at}/hint", 2000, kinds=("plain_text",))


def _alert(checker: Checker, block: dict[str, Any], at: str) -> None:
    if checker.required(block, "text", at):
        check_text(checker, block["text"], f"{at}/text", 3000)


def _table(checker: Checker, block: dict[str, Any], at: str) -> None:
    if not checker.required(block, "rows", at) or not checker.array(block["rows"], f"{at}/rows", 100):
        return
    for number, row in enumerate(block["rows"]):
        if not checker.array(row, f"{at}/rows/{number}", 20):
            continue
        for column, cell in enumerate(row):
            _cell(checker, cell, f"{at}/rows/{number}/{column}")
    if _characters(block["rows"]) > TABLE_CHARACTERS:
        checker.add(f"table cells must be less than {TABLE_CHARACTERS + 1} characters together", f"{at}/rows")
    if "column_settings" in block and checker.array(block["column_settings"], f"{at}/column_settings", 20):
        for column, setting in enumerate(block["column_settings"]):
            place = f"{at}/column_settings/{column}"
            if setting is not None and checker.known_fields(setting, ("align", "is_wrapped"), place):
                checker.choice(setting.get("align", "left"), ("left", "center", "right"), f"{place}/align")


def _cell(checker: Checker, cell: object, at: str) -> None:
    if not isinstance(cell, dict) or cell.get("type") not in ("raw_text", "raw_number", "rich_text"):
        checker.add("must be a raw_text, raw_number or rich_text object", at)
    elif cell["type"] == "rich_text":
        check_rich_text(checker, cell, at)
    elif checker.known_fields(cell, ("type", "text", "value"), at) and cell["type"] == "raw_text":
        checker.string(cell.get("text"), f"{at}/text", TABLE_CHARACTERS)


def _plan(checker: Checker, block: dict[str, Any], at: str) -> None:
    if checker.required(block, "title", at):
        checker.string(block["title"], f"{at}/title", 3000)
    if "tasks" not in block or not checker.array(block["tasks"], f"{at}/tasks", MESSAGE_BLOCKS):
        return
    seen: set[str] = set()
    for index, task in enumerate(block["tasks"]):
        place = f"{at}/tasks/{index}"
        # Slack takes the items with their type and, as its own examples show, without it.
        if not isinstance(task, dict) or task.get("type", "task_card") != "task_card":
            checker.add("must be a task_card", place)
            continue
        checker.known_fields(task, ("type", "block_id", *BLOCKS["task_card"][0]), place)
        _task_card(checker, task, place)
        task_id = task.get("task_id")
        if isinstance(task_id, str):
            if task_id in seen:
                checker.add(f"`task_id` {task_id!r} already exists", f"{place}/task_id")
            seen.add(task_id)


def _task_card(checker: Checker, block: dict[str, Any], at: str) -> None:
    for name in ("task_id", "title"):
        if checker.required(block, name, at):
            checker.string(block[name], f"{at}/{name}", 3000)
    if checker.required(block, "status", at):
        checker.choice(block["status"], TASK_STATUSES, f"{at}/status")
    for name in ("details", "output"):
        if name in block:
            check_rich_text(checker, block[name], f"{at}/{name}")
    if "sources" in block:
        checker.array(block["sources"], f"{at}/sources", 100)


BLOCKS: dict[str, tuple[tuple[str, ...], Callable[[Checker, dict[str, Any], str], None]]] = {
    "section": (("text", "fields", "accessory", "expand"), _section),
    "header": (("text",), _header),
    "divider": ((), _divider),
    "context": (("elements",), _context),
    "actions": (("elements",), _actions),
    "image": (("image_url", "slack_file", "alt_text", "title"), _image),
    "markdown": (("text",), _markdown),
    "rich_text": (("elements",), _rich_text),
    "table": (("rows", "column_settings"), _table),
    "plan": (("title", "tasks"), _plan),
    "task_card": (("task_id", "title", "details", "output", "sources", "status"), _task_card),
    "input": (("label", "element", "hint", "optional", "dispatch_action"), _input),
    "alert": (("text", "level"), _alert),
}
"""Block type to the fields that it may have besides `type` and `block_id`, and its check."""
