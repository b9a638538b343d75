from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.render.text import bar, code, count, duration, escape, keep_end, keep_start, megabytes, percent, person, plain


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1, "0.0 s"),
        (4.21, "4.2 s"),
        (9.97, "10 s"),
        (42.4, "42 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
        (273_600, "3 d 04 h"),
    ],
)
def test_seconds_read_like_time(seconds: float, expected: str) -> None:
    assert expected == duration(seconds)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, "0 %"), (0.001, "1 %"), (0.5, "50 %"), (0.999, "99 %"), (1.0, "100 %")]
)
def test_per_cent_is_nothing_or_all_only_when_it_is(share: float, expected: str) -> None:
    assert expected == percent(share)


@pytest.mark.parametrize(("done", "expected"), [(0, "░░░░"), (119, "███░"), (120, "████"), (500, "████")])
def test_a_bar_is_full_only_when_everything_is_done(done: int, expected: str) -> None:
    assert expected == bar(done, 120, width=4)


def test_a_bar_without_steps_is_empty() -> None:
    assert bar(3, 0, width=4) == "░░░░"


def test_numbers_have_units() -> None:
    assert megabytes(12_345) == "12.3 kB"
    assert megabytes(12_345_678) == "12.3 MB"
    assert megabytes(12_345_678_901) == "12.3 GB"
    assert count(1, "row") == "1 row"
    assert count(12_345, "row") == "12,345 rows"


def test_code_stays_code_whatever_is_in_it() -> None:
    assert code("a`b\n<!channel> & c") == "`a'b &lt;!channel&gt; &amp; c`"
    assert code("  ") == "`''`"


def test_only_user_ids_are_mentioned() -> None:
    assert person("U0LOCALYOU") == "<@U0LOCALYOU>"
    assert person("<!here>") == "&lt;!here&gt;"
    assert person("Ute") == "Ute"


def test_plain_text_is_never_empty() -> None:
    assert plain(" \n ") == "(empty)"


@given(st.text(alphabet="ab&<>\n", max_size=300), st.integers(min_value=2, max_value=60))
def test_what_is_cut_at_the_start_fits_once_escaped_and_keeps_the_end(text: str, limit: int) -> None:
    kept = keep_end(text, limit)
    assert len(escape(kept)) <= max(limit, len(escape("…")))
    assert kept == text or (kept.startswith("…") and text.endswith(kept[1:]))


@given(st.text(max_size=300), st.integers(min_value=1, max_value=60))
def test_what_is_cut_at_the_end_fits_and_keeps_the_start(text: str, limit: int) -> None:
    kept = keep_start(text, limit)
    assert len(kept) <= limit
    assert kept == text or text.startswith(kept[:-1])
