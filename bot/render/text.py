"""Small pieces of text: escaping, truncation, numbers with units. Pure.

Everything that comes from a user, a file, a host or an error passes through `escape`, `code` or `plain` exactly once,
at the place where it is put into a message.
"""

from __future__ import annotations

import re

from runner.redaction import redact

ERROR_LIMIT = 2_500
"""Characters of an error's message; its end is kept."""

_USER_ID = re.compile(r"[UW][A-Z0-9]{2,}")
_WHITE_SPACE = re.compile(r"\s+")


def escape(text: str) -> str:
    """Make the three control characters of Slack's markup literal, so that `<!channel>` pings nobody. Hides secrets."""
    return redact(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: str, limit: int = 200) -> str:
    """Show foreign text in one line of fixed-width type; an empty one is shown as an empty pair of quotes."""
    one_line = _WHITE_SPACE.sub(" ", redact(text)).strip().replace("`", "'")
    return f"`{escape(keep_start(one_line, limit)) or repr('')}`"


def plain(text: str, limit: int = 150) -> str:
    """Foreign text for a `plain_text` or `raw_text` field: one line, never empty, not escaped because it is literal."""
    return keep_start(_WHITE_SPACE.sub(" ", redact(text)).strip(), limit) or "(empty)"


def keep_start(text: str, limit: int) -> str:
    """At most `limit` characters, cut at the end."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def keep_end(text: str, limit: int) -> str:
    """At most `limit` characters once escaped, cut at the start: the end of a log says what went wrong."""
    kept = redact(text)  # before it is cut: half a token is not known for one
    while (excess := len(escape(kept)) - limit) > 0:
        # One character escapes to up to five, so this may cut more than once and never too little.
        kept = "…" + kept[max(2, -(-excess // 5) + 1) :]
    return kept


def person(who: str) -> str:
    """A Slack user id as a mention, any other name literally."""
    return f"<@{who}>" if _USER_ID.fullmatch(who) else escape(keep_start(who, 80))


def number(value: int) -> str:
    """A count with thousands separated: `32,000`."""
    return f"{value:,}"


def count(value: int, noun: str) -> str:
    """A count with its noun: `1 row`, `2 rows`."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def percent(share: float) -> str:
    """A share of 1 in whole per cent, never rounded up to 100 or down to 0."""
    rounded = round(share * 100)
    if rounded == 100 and share < 1:  # noqa: PLR2004 - a hundred per cent
        return "99 %"
    if rounded == 0 and share > 0:
        return "1 %"
    return f"{rounded} %"


def megabytes(size: int) -> str:
    """Bytes as decimal megabytes, gigabytes from 10 GB on, kilobytes below a tenth of a megabyte."""
    if size >= 10_000_000_000:  # noqa: PLR2004 - from here on gigabytes read better
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e3:,.1f} kB" if size < 100_000 else f"{size / 1e6:,.1f} MB"  # noqa: PLR2004 - the tenth


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `42 s`, `3 min 05 s`, `2 h 07 min`, `3 d 04 h`."""
    if seconds < 9.95:  # noqa: PLR2004 - below ten, a tenth still tells something
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if not minutes:
        return f"{whole} s"
    if not hours:
        return f"{minutes} min {whole % 60:02d} s"
    if not days:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{days} d {hours % 24:02d} h"


def figure(value: float) -> str:
    """A loss or a norm with four significant digits, without a trailing exponent where people can do without."""
    return f"{value:.4g}"


def bar(done: int, total: int, width: int = 20) -> str:
    """A progress bar of `width` characters; full only when everything is done."""
    filled = min(width, width * done // total) if total > 0 else 0
    return "█" * filled + "░" * (width - filled)
