"""Messages and blocks as text for a terminal: styled there, plain where the output is piped. Pure but for `isatty`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.emoji import Emoji
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bot.workspace.mrkdwn import mrkdwn_text, rich_text_text
from bot.workspace.records import Message
from bot.workspace.state import BOT_USER, YOU

TASK_MARKS = {
    "pending": ("○", "dim"),
    "in_progress": ("◐", "yellow"),
    "complete": ("✓", "green"),
    "error": ("✗", "red"),
}
NAMES = {user.id: user.name for user in (BOT_USER, YOU)}
PLAIN_WIDTH = 200
"""Columns of plain output: nobody wraps it again, and tables still end somewhere."""


def render_message(message: Message, *, color: bool | None = None, names: Mapping[str, str] = NAMES) -> str:
    """A message with its head line, several lines of text without a final newline.

    Args:
        message: What to show; its blocks where it has any, else its text.
        color: Whether to style it; None means where stdout is a terminal.
        names: User id to name.
    """
    styled = sys.stdout.isatty() if color is None else color
    head = Text(names.get(message.user, message.user), style="bold")
    when = datetime.fromtimestamp(float(message.ts), tz=UTC).astimezone()
    head.append(f"  {when:%H:%M:%S}", style="dim not bold")
    if message.visible_to is not None:
        head.append("  only visible to you", style="dim italic not bold")
    if message.deleted:
        head.append("  deleted", style="dim italic not bold")
        return _print(head, styled)
    if message.edited_ts is not None:
        head.append("  edited", style="dim italic not bold")
    body = [render for block in message.blocks for render in _block(block, names)]
    if not body and message.text:
        body = [mrkdwn_text(message.text, names)]
    if message.files:
        body.append(Text(f"📎 {len(message.files)} file(s)", style="dim"))
    if message.reactions:
        shown = "  ".join(Emoji.replace(f":{name}: {len(users)}") for name, users in message.reactions.items())
        body.append(Text(shown, style="dim"))
    return _print(Group(head, *(Padding(part, (0, 0, 0, 2)) for part in body)), styled)


class ThreadPrinter:
    """Renders a thread as it grows: new messages whole, of edited ones the lines that changed.

    Args:
        color: As for `render_message`.
        names: User id to name.
    """

    def __init__(self, *, color: bool | None = None, names: Mapping[str, str] = NAMES) -> None:
        self._color = color
        self._names = names
        self._shown: dict[str, list[str]] = {}

    def render(self, message: Message) -> str | None:
        """What to print of this change, None where nothing that people see has changed."""
        lines = render_message(message, color=self._color, names=self._names).splitlines()
        before = self._shown.get(message.ts)
        self._shown[message.ts] = lines
        if before is None or message.deleted:
            return "\n".join(lines)
        known = set(before)
        changed = [line for line in lines[1:] if line not in known]
        return "\n".join([lines[0], *changed]) if changed else None


# --- blocks ----------------------------------------------------------------------------------------------------------


def _block(block: dict[str, Any], names: Mapping[str, str]) -> list[RenderableType]:
    render = RENDERERS.get(block["type"])
    return render(block, names) if render else [Text(f"({block['type']})", style="dim")]


def _section(block: dict[str, Any], names: Mapping[str, str]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if "text" in block:
        parts.append(_text_object(block["text"], names))
    parts.extend(_text_object(field, names) for field in block.get("fields", []))
    if "accessory" in block:
        parts.append(Text(_label(block["accessory"]), style="bold cyan"))
    return parts


def _context(block: dict[str, Any], names: Mapping[str, str]) -> list[RenderableType]:
    shown = [
        Text(element.get("alt_text", "")) if element["type"] == "image" else _text_object(element, names)
        for element in block["elements"]
    ]
    line = Text(" · ").join(shown)
    line.stylize("dim")
    return [line]


def _task(task: dict[str, Any], names: Mapping[str, str]) -> list[RenderableType]:
    mark, style = TASK_MARKS[task["status"]]
    below = [rich_text_text(task[name], names) for name in ("details", "output") if name in task]
    return [Text.assemble((mark, style), f" {task['title']}"), *(Padding(part, (0, 0, 0, 4)) for part in below)]


def _plan(block: dict[str, Any], names: Mapping[str, str]) -> list[RenderableType]:
    tasks = [part for task in block.get("tasks", []) for part in _task(task, names)]
    return [Text(block["title"], style="bold"), *tasks]


def _actions(block: dict[str, Any], _names: Mapping[str, str]) -> list[RenderableType]:
    return [Text("  ".join(_label(element) for element in block["elements"]), style="bold cyan")]


def _table(block: dict[str, Any], names: Mapping[str, str]) -> list[RenderableType]:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    settings = block.get("column_settings", [])
    for column in range(max(len(row) for row in block["rows"])):
        setting = (settings[column] if column < len(settings) else None) or {}
        table.add_column(justify=setting.get("align", "left"))
    for number, row in enumerate(block["rows"]):
        table.add_row(*(_cell(cell, names) for cell in row), style="bold" if number == 0 else None)
    return [table]


def _cell(cell: dict[str, Any], names: Mapping[str, str]) -> Text:
    if cell["type"] == "rich_text":
        return rich_text_text(cell, names)
    return Text(str(cell.get("text", cell.get("value", ""))))


def _text_object(node: dict[str, Any], names: Mapping[str, str]) -> Text:
    return mrkdwn_text(node["text"], names) if node["type"] == "mrkdwn" else Text(Emoji.replace(node["text"]))


def _label(element: dict[str, Any]) -> str:
    text = element.get("text") or element.get("placeholder") or {}
    return f"[{text.get('text', element['type'])}]"


RENDERERS: dict[str, Callable[[dict[str, Any], Mapping[str, str]], list[RenderableType]]] = {
    "section": _section,
    "header": lambda block, _: [Text(Emoji.replace(block["text"]["text"]), style="bold underline")],
    "divider": lambda _block, _names: [Text("─" * 24, style="dim")],
    "context": _context,
    "actions": _actions,
    "markdown": lambda block, _: [Text(block["text"])],
    "rich_text": lambda block, names: [rich_text_text(block, names)],
    "image": lambda block, _: [Text(f"🖼 {block.get('alt_text', '')}", style="dim")],
    "table": _table,
    "plan": _plan,
    "task_card": _task,
}
"""Block type to what renders it; a type that is not here is named only."""


def _print(renderable: RenderableType, styled: bool) -> str:
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=styled,
        color_system="standard" if styled else None,
        width=None if styled else PLAIN_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(renderable)
    lines = buffer.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines)
