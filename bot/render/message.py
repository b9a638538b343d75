"""A message and the blocks that it is made of, within Slack's limits. Pure.

Source of the limits: https://docs.slack.dev/reference/block-kit/blocks and, for the total, slackapi/bolt-js#2509.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from bot.render.text import count, escape, keep_end, plain

Block = dict[str, Any]

SECTION_LIMIT = 3_000
"""Characters of one section's text."""
CONTEXT_LIMIT = 2_000
"""Characters of one context element; Slack states none, its clients show about this much."""
TEXT_LIMIT = 4_000
"""Characters of the fallback text that Slack recommends not to exceed."""
BLOCKS_LIMIT = 50
"""Blocks of one message."""
TOTAL_LIMIT = 10_000
"""Characters of all blocks together. Slack documents none and answers `msg_blocks_too_long` between 10,600 and 13,200,
depending on the blocks."""
TABLE_ROWS = 100
TABLE_LIMIT = 8_000
"""Characters of a table's cells together; Slack takes 10,000."""
TABLE_CELL_LIMIT = 300
"""Characters of a table's cell: ours, so that a wide prompt does not push the answers off the screen."""
PHONE_COLUMNS = 42
"""Characters of fixed-width type in one line of a message on a phone 390 points wide; what is longer is wrapped."""
DRAWN_CELL_LIMIT = 120
"""Characters of a cell in a table drawn in fixed-width type."""

REFUSED_BLOCKS = frozenset({"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long"})
"""Slack's codes for a message whose blocks it does not take, though it may take others."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is posted, edited or answered."""

    text: str
    """Fallback: what notifications, screen readers and plain clients show. Slack markup, escaped."""
    blocks: tuple[Block, ...] = ()
    classic: tuple[Block, ...] = ()
    """The same in blocks that every workspace knows; used where `blocks` is refused. Empty: `blocks` is classic."""

    def choices(self, *, classic: bool = False) -> tuple[tuple[Block, ...], ...]:
        """The blocks to try one after the other where Slack refuses them; the last choice is none, the text alone.

        Args:
            classic: Whether the workspace is known to refuse newer blocks.
        """
        older = (self.classic,) if self.classic else ()
        return (*older, ()) if classic and older else (self.blocks, *older, ())


def section(text: str) -> Block:
    """A paragraph of Slack markup, already escaped."""
    return {"type": "section", "text": _markup(text)}


def context(text: str) -> Block:
    """A small grey line of Slack markup, already escaped."""
    return {"type": "context", "elements": [_markup(text[:CONTEXT_LIMIT])]}


def _markup(text: str) -> Block:
    # Verbatim: Slack would else turn an `@channel` or `#name` of a dataset or an error into a mention.
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def paragraphs(lines: Iterable[str]) -> tuple[Block, ...]:
    """Lines as few sections as fit, broken between lines; what exceeds a whole message is cut at the start."""
    kept: list[str] = []
    budget = TOTAL_LIMIT
    for line in reversed(list(lines)):
        short = line if len(line) <= SECTION_LIMIT else _cut_escaped(line)
        if len(short) + 1 > budget:
            kept.append("…")
            break
        budget -= len(short) + 1
        kept.append(short)
    blocks: list[Block] = []
    current: list[str] = []
    for line in reversed(kept):
        if current and sum(map(len, current)) + len(current) + len(line) > SECTION_LIMIT:
            blocks.append(section("\n".join(current)))
            current = []
        current.append(line)
    if any(current):
        blocks.append(section("\n".join(current)))
    return tuple(blocks[-BLOCKS_LIMIT:])


def fallback(lines: Iterable[str]) -> str:
    """Lines as fallback text, its end kept."""
    text = "\n".join(lines)
    return text if len(text) <= TEXT_LIMIT else _cut_escaped(text, TEXT_LIMIT)


def compose(lines: Sequence[str]) -> Message:
    """A message of lines only."""
    return Message(text=fallback(lines), blocks=paragraphs(lines))


def compose_with_table(lines: Sequence[str], rows: Sequence[Sequence[str]], after: Sequence[str] = ()) -> Message:
    """Lines, a table whose first row is its head, and lines below it. Cells are literal text, not markup."""
    drawn = draw(rows)
    shown = rows[:TABLE_ROWS]
    if len(rows) > len(shown):
        after = [f"… and {count(len(rows) - len(shown), 'more row')}", *after]
    room = min(TABLE_LIMIT, TOTAL_LIMIT - sum(map(len, (*lines, *after))))
    cell_limit = max(10, min(TABLE_CELL_LIMIT, room // (len(shown) * len(shown[0]))))
    table: Block = {
        "type": "table",
        "rows": [[{"type": "raw_text", "text": plain(cell, cell_limit)} for cell in row] for row in shown],
        "column_settings": [{"is_wrapped": True} for _ in rows[0]],
    }
    return Message(
        text=fallback([*lines, drawn, *after]),
        blocks=(*paragraphs(lines), table, *([context("\n".join(after))] if after else [])),
        classic=(*paragraphs(lines), section(drawn), *([context("\n".join(after))] if after else [])),
    )


def draw(rows: Sequence[Sequence[str]]) -> str:
    """A table in fixed-width type, escaped, short enough for a section.

    What is wider than a phone's screen becomes one paragraph a row: its first cell, below it the others by their heads.
    """
    cells = [[plain(cell, 40) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    if max(map(len, lines)) > PHONE_COLUMNS:
        lines = [line for row in rows[1:] for line in _paragraph(rows[0], row)]
    inner = "\n".join(lines).replace("`", "'")
    return f"```\n{escape(keep_end(inner, SECTION_LIMIT - 10))}\n```"


def _paragraph(head: Sequence[str], row: Sequence[str]) -> list[str]:
    """A row of a table as lines that fit: cells share a line while they can, and a long one is wrapped."""
    lines: list[str] = []
    for name, cell in zip(head[1:], row[1:], strict=True):
        part = f"{name}: {plain(cell, DRAWN_CELL_LIMIT)}"
        if lines and len(f"  {lines[-1]} · {part}") <= PHONE_COLUMNS:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    title = wrap(plain(row[0], DRAWN_CELL_LIMIT), PHONE_COLUMNS, subsequent_indent="    ")
    return title + [
        wrapped
        for line in lines
        for wrapped in wrap(line, PHONE_COLUMNS, initial_indent="  ", subsequent_indent="    ")
    ]


def button(text: str, *, action_id: str, value: str, style: str | None = None, confirm: Block | None = None) -> Block:
    """A button; `confirm` is asked before the press counts."""
    block: Block = {
        "type": "button",
        "text": {"type": "plain_text", "text": text},
        "action_id": action_id,
        "value": value,
    }
    if style is not None:
        block["style"] = style
    if confirm is not None:
        block["confirm"] = confirm
    return block


def _cut_escaped(text: str, limit: int = SECTION_LIMIT) -> str:
    """Keep the end of text that is escaped already, without leaving half an entity at the cut."""
    tail = text[-(limit - 1) :]
    head, semicolon, rest = tail.partition(";")
    if semicolon and "&" not in head and head in _ENTITY_TAILS:
        tail = rest
    return "…" + tail


_ENTITY_TAILS = frozenset({"amp", "mp", "p", "lt", "gt", "t", ""})
