"""What people type, and what is understood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.commands import (
    EXAMPLES,
    USAGE,
    Command,
    Help,
    Jobs,
    Projects,
    Start,
    Status,
    Stop,
    Versions,
    parse_command,
)
from runner.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Help()),
        ("   ", Help()),
        ("help", Help()),
        ("jobs", Jobs()),
        ("projects", Projects()),
        ("versions", Versions()),
        ("status", Status()),
        ("status demo-k7x2q", Status(job="demo-k7x2q")),
        ("STATUS demo", Status(job="demo")),
        ("stop demo-k7", Stop(job="demo-k7")),
        ("start demo", Start(project="demo")),
        (
            "start demo lora.r=8 training.learning_rate=1e-3",
            Start(project="demo", overrides={"lora.r": "8", "training.learning_rate": "1e-3"}),
        ),
        ("start demo key=a=b", Start(project="demo", overrides={"key": "a=b"})),
        ('start demo description="two words"', Start(project="demo", overrides={"description": "two words"})),
        ("start demo description=“two words”", Start(project="demo", overrides={"description": "two words"})),
        ("start demo description=\u2018two words\u2019", Start(project="demo", overrides={"description": "two words"})),
        ("start\u00a0demo\u200b", Start(project="demo")),
        ("stop `demo-k7x2q`", Stop(job="demo-k7x2q")),
        ("start demo path=a\\b", Start(project="demo", overrides={"path": "a\\b"})),
        ("start demo note=a#b", Start(project="demo", overrides={"note": "a#b"})),
    ],
)
def test_text_becomes_a_command(text: str, expected: Command) -> None:
    assert expected == parse_command(text)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("strat demo", "no command 'strat'", "Did you mean `/qlora start demo`?"),
        ("statsu", "no command 'statsu'", "Did you mean `/qlora status`?"),
        ("xyzzy", "no command 'xyzzy'", "`/qlora help` lists the commands."),
        ("start", "Which project?", "start PROJECT"),
        ("start lora.r=8", "Which project?", "start PROJECT"),
        ("start demo 8", "'8' is not an override", "training.num_train_epochs=1"),
        ("start demo lora.r=", "'lora.r=' is not an override", "key=value"),
        ("start demo =8", "'=8' is not an override", "key=value"),
        ("start demo lora.r=8 lora.r=9", "'lora.r' is given twice", "Keep one"),
        ('start demo note="open', "never closed", "Close it"),
        ("start demo note=“open", "never closed", "Close it"),
        ("stop", "Which job?", "stop JOB"),
        ("stop a b", "takes one job", "stop JOB"),
        ("status a b", "takes one job", "status [JOB]"),
        ("jobs all", "takes no arguments", "/qlora jobs"),
    ],
)
def test_what_cannot_be_understood_says_what_would_be(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command(text)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_stop_needs_no_job_inside_a_thread() -> None:
    assert Stop(job=None) == parse_command("stop", in_thread=True)
    assert Stop(job="demo-k7") == parse_command("stop demo-k7", in_thread=True)


@pytest.mark.parametrize("verb", EXAMPLES)
def test_every_example_is_a_command(verb: str) -> None:
    assert verb in USAGE
    assert verb == type(parse_command(EXAMPLES[verb])).__name__.lower()


@given(st.text(max_size=200))
def test_any_text_is_a_command_or_a_usage_error_with_a_hint(text: str) -> None:
    try:
        outcome: Command | str | None = parse_command(text)
    except UsageError as error:
        outcome = error.hint
    assert outcome
