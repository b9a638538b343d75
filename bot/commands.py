"""What people type after `/qlora`, turned into a command. Pure: no Slack, no Redis, no file is read.

The verbs are `start PROJECT [key=value …]`, `stop JOB`, `status [JOB]`, `jobs`, `projects`, `versions` and `help`.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from runner.errors import UsageError


@dataclass(frozen=True, slots=True)
class Start:
    """`start PROJECT [key=value …]`: check the project and queue a job.

    Example:
        `start support-bot training.learning_rate=1e-4 lora.r=32`
    """

    project: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Dotted key of the project file to the text typed; `runner.projects` decides what it may be."""


@dataclass(frozen=True, slots=True)
class Stop:
    """`stop JOB`: a job's id, the start of one, or a project that has one job under way.

    Example:
        `stop support-bot-k7x2q`
    """

    job: str | None
    """None inside a job's thread, where the thread says which job is meant."""


@dataclass(frozen=True, slots=True)
class Status:
    """`status [JOB]`: the queue, what runs and who works; or one job.

    Example:
        `status` or `status support-bot-k7`
    """

    job: str | None = None


@dataclass(frozen=True, slots=True)
class Jobs:
    """`jobs`: the latest jobs, finished ones included."""


@dataclass(frozen=True, slots=True)
class Projects:
    """`projects`: what can be started, and which project files are broken."""


@dataclass(frozen=True, slots=True)
class Versions:
    """`versions`: the version stacks that are tested, and which of them the workers have."""


@dataclass(frozen=True, slots=True)
class Help:
    """`help`: this list."""


Command = Start | Stop | Status | Jobs | Projects | Versions | Help

USAGE: Mapping[str, str] = {
    "start": "start PROJECT [key=value …]",
    "stop": "stop JOB",
    "status": "status [JOB]",
    "jobs": "jobs",
    "projects": "projects",
    "versions": "versions",
    "help": "help",
}
"""Every verb with its arguments, in the order that help shows them."""

EXAMPLES: Mapping[str, str] = {
    "start": "start demo training.learning_rate=1e-3",
    "stop": "stop demo-k7x2q",
    "status": "status demo-k7x2q",
}

_STRAIGHT_QUOTES = str.maketrans("\u201c\u201d\u201e\u2018\u2019", '"""\'\'')
"""Slack's clients turn typed quotes into typographic ones."""
_NOT_MEANT = re.compile("[`\u200b\u200e\u200f\u2060\ufeff]")
"""What comes along unseen when an id or a command is copied from a message: it is shown as code there."""
_NO_ARGUMENTS: Mapping[str, type[Jobs | Projects | Versions | Help]] = {
    "jobs": Jobs,
    "projects": Projects,
    "versions": Versions,
    "help": Help,
}


def parse_command(text: str, *, in_thread: bool = False) -> Command:
    """Read what was typed after `/qlora`, or after the bot's name.

    Args:
        text: The typed text, without `/qlora`. Empty text asks for help.
        in_thread: Whether it was typed inside a job's thread, where `stop` needs no job.

    Raises:
        UsageError: It cannot be understood; the hint shows what would be.
    """
    words = _split(text)
    if not words:
        return Help()
    verb, arguments = words[0].lower(), words[1:]
    match verb:
        case "start":
            return _start(arguments)
        case "stop":
            if not arguments and in_thread:
                return Stop(job=None)
            return Stop(job=_only_argument(verb, arguments))
        case "status":
            return Status(job=_only_argument(verb, arguments)) if arguments else Status()
        case "jobs" | "projects" | "versions" | "help":
            if arguments:
                raise UsageError(f"`{verb}` takes no arguments, and {arguments[0]!r} was given.", hint=usage(verb))
            return _NO_ARGUMENTS[verb]()
        case _:
            raise UsageError(f"There is no command {words[0]!r}.", hint=_suggestion(verb, arguments))


def usage(verb: str) -> str:
    """How a verb is typed, with an example where one helps."""
    example = f" For example: `/qlora {EXAMPLES[verb]}`." if verb in EXAMPLES else ""
    return f"Type `/qlora {USAGE[verb]}`.{example}"


def _split(text: str) -> list[str]:
    plain = _NOT_MEANT.sub("", text).replace("\u00a0", " ").translate(_STRAIGHT_QUOTES)
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    # A path such as a\b and a comment sign are meant as typed; only quotes group.
    lexer.escape = ""
    lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError as error:
        raise UsageError(
            "A quote is opened and never closed.",
            hint='Close it, as in `/qlora start demo training.optim="adamw_torch"`, or leave the quotes out.',
        ) from error


def _start(arguments: list[str]) -> Start:
    if not arguments or "=" in arguments[0]:
        raise UsageError("Which project?", hint=f"{usage('start')} `/qlora projects` lists them.")
    project, *pairs = arguments
    overrides: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or not value:
            raise UsageError(
                f"{pair!r} is not an override.",
                hint="Write key=value without spaces around `=`, such as `training.num_train_epochs=1`.",
            )
        if key in overrides:
            raise UsageError(f"{key!r} is given twice.", hint="Keep one of them.")
        overrides[key] = value
    return Start(project=project, overrides=overrides)


def _only_argument(verb: str, arguments: list[str]) -> str:
    if not arguments:
        raise UsageError("Which job?", hint=f"{usage(verb)} `/qlora jobs` lists them.")
    if len(arguments) > 1:
        raise UsageError(f"`{verb}` takes one job, and {len(arguments)} words were given.", hint=usage(verb))
    return arguments[0]


def _suggestion(verb: str, arguments: list[str]) -> str:
    near = difflib.get_close_matches(verb, USAGE, n=1, cutoff=0.6)
    if near:
        return f"Did you mean `/qlora {' '.join([near[0], *arguments])}`?"
    return "`/qlora help` lists the commands."
