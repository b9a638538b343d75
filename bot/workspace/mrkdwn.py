"""Slack's own markup as styled text: `*bold*`, `<@user>`, `<url|label>`, `&amp;`; and `rich_text` objects. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.emoji import Emoji
from rich.text import Text

MARKUP = re.compile(
    r"```\n?(?P<block>.*?)\n?```"
    r"|`(?P<code>[^`\n]+)`"
    r"|<(?P<reference>[^<>\n]+)>"
    r"|(?<![\w*])\*(?P<bold>[^*\n]+)\*(?![\w*])"
    r"|(?<![\w_])_(?P<italic>[^_\n]+)_(?![\w_])"
    r"|(?<![\w~])~(?P<strike>[^~\n]+)~(?![\w~])",
    re.DOTALL,
)
STYLES = {"bold": "bold", "italic": "italic", "strike": "strike"}


def unescape(text: str) -> str:
    """Text with `&lt; &gt; &amp;` as the characters that they stand for."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def mrkdwn_text(source: str, names: Mapping[str, str]) -> Text:
    """Slack's markup as styled text, its marks left out.

    Args:
        source: As it was sent.
        names: User id to name, for mentions.
    """
    text = Text()
    end = 0
    for match in MARKUP.finditer(source):
        text.append(_plain(source[end : match.start()]))
        end = match.end()
        kind, inner = match.lastgroup or "", match[match.lastgroup or 0]
        if kind == "block":
            text.append("\n".join(f"    {line}" for line in unescape(inner).splitlines()), style="green")
        elif kind == "code":
            text.append(unescape(inner), style="green")
        elif kind == "reference":
            text.append(_reference(inner, names), style="cyan")
        else:
            nested = mrkdwn_text(inner, names)
            nested.stylize_before(STYLES[kind])
            text.append_text(nested)
    text.append(_plain(source[end:]))
    return text


def rich_text_text(node: dict[str, Any], names: Mapping[str, str]) -> Text:
    """A `rich_text` object as styled text."""
    return Text("\n").join(_part(part, names) for part in node["elements"])


def _plain(source: str) -> str:
    return unescape(Emoji.replace(source))


def _reference(inner: str, names: Mapping[str, str]) -> str:
    target, _, label = inner.partition("|")
    if target.startswith("@"):
        return f"@{names.get(target[1:], label or target[1:])}"
    if target.startswith("#"):
        return f"#{label or target[1:]}"
    if target.startswith("!"):
        return unescape(label) or f"@{target[1:].partition('^')[0]}"
    return f"{unescape(label)} ({unescape(target)})" if label and label != target else unescape(target)


def _part(part: dict[str, Any], names: Mapping[str, str]) -> Text:
    if part["type"] == "rich_text_list":
        ordered = part.get("style") == "ordered"
        items = [
            Text.assemble(f"{number}. " if ordered else "• ", _part(item, names))
            for number, item in enumerate(part["elements"], start=1)
        ]
        return Text("\n").join(items)
    line = Text()
    for element in part["elements"]:
        line.append_text(_inline(element, names))
    if part["type"] == "rich_text_preformatted":
        line.stylize("green")
        return Text("\n").join(Text("    ") + row for row in line.split("\n"))
    if part["type"] == "rich_text_quote":
        return Text("\n").join(Text("│ ", style="dim") + row for row in line.split("\n"))
    return line


def _inline(element: dict[str, Any], names: Mapping[str, str]) -> Text:
    match element["type"]:
        case "text":
            wanted = element.get("style") or {}
            styles = [name for name in ("bold", "italic", "strike") if wanted.get(name)]
            return Text(element["text"], style=" ".join([*styles, "green"] if wanted.get("code") else styles))
        case "link":
            label, url = element.get("text"), element["url"]
            return Text(f"{label} ({url})" if label and label != url else url, style="cyan")
        case "emoji":
            return Text(Emoji.replace(f":{element['name']}:"))
        case "user":
            return Text(f"@{names.get(element['user_id'], element['user_id'])}", style="cyan")
        case "broadcast":
            return Text(f"@{element['range']}", style="cyan")
    return Text(str(element.get("fallback") or element.get("channel_id") or element.get("value") or ""))
