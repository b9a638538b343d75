"""Every error that a person can meet, by who has to act on it. Imports nothing of this project.

QLoRAError
├── UsageError                the requester: the command itself is wrong
├── SpecError                 the author of a project file: *all* its problems at once
├── JobError                  the requester: no such job, or it is over
├── PolicyError               the requester: not permitted
├── UnavailableError          the operator: Redis, a port, a folder
├── HostRefusesError          the operator of a GPU host: its own limits
└── TrainingError             whoever owns the model, the data or the host; device-failed
    ├── MemoryExhaustedError  out-of-memory
    ├── ModelAccessError      model-not-found, model-gated, model-offline
    ├── ModelFilesError       model-corrupt
    ├── ConfigError           model-type-mismatch, config-unreadable
    ├── TokenizerError        tokenizer
    ├── DatasetError          dataset
    ├── TargetModulesError    target-modules
    ├── DiskFullError         disk-full
    ├── LadderError           ladder-exhausted
    ├── AdapterError          adapter-rejected
    └── ResumeMismatchError   resume-mismatch

Errors cross processes as the event fields code, message and hint (`runner.events`), never as pickles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class QLoRAError(Exception):
    """The root: a message for people, a hint what to do, and a kebab-case code for machines.

    Args:
        message: What is wrong, in one or two sentences.
        hint: What to do about it, or None where the message says it all.
        code: A finer code than the class's own, where one class covers several findings.
    """

    code: str = "error"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageError(QLoRAError):
    """The command cannot be understood; the requester has to type another one."""

    code = "usage"


OVERRIDE = "override"
"""Stands for the file where a requester's `key=value` is what is wrong."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a project file, a catalog, a data file or an override."""

    message: str
    """What is wrong and what would be right."""
    file: str
    """The file to edit, relative to the projects folder where it lies inside it; or `OVERRIDE`."""
    line: int | None = None
    """1-based line in that file, None where the finding has no line."""
    column: int | None = None
    """1-based column, known for syntax errors only."""
    path: str | None = None
    """Dotted path of the key, such as `traits[0].datasets[1].percentage`."""

    def __str__(self) -> str:
        place = self.file
        if self.line is not None:
            place += f":{self.line}"
            if self.column is not None:
                place += f":{self.column}"
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class SpecError(QLoRAError):
    """A project file is not valid; carries every problem that was found, in file order."""

    code = "invalid-project"

    def __init__(self, name: str, problems: list[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        if all(problem.file == OVERRIDE for problem in problems):
            super().__init__(f"The settings for {name!r} have {count}.", hint="Correct them, then start it again.")
        else:
            super().__init__(f"Project {name!r} has {count}.", hint="Edit the file, then start it again.")
        self.problems = tuple(problems)


class JobError(QLoRAError):
    """No such job (`job-not-found`), in a wrong state (`job-finished`), or no record of a job (`record-invalid`)."""

    code = "job"


class PolicyError(QLoRAError):
    """The requester may not do this."""

    code = "not-permitted"


class UnavailableError(QLoRAError):
    """Something the operator runs cannot be reached or used."""

    code = "unavailable"


class HostRefusesError(QLoRAError):
    """A job asks for something that the host's own settings do not permit (`runner.host_limits`)."""

    code = "host-refuses"


class TrainingError(QLoRAError):
    """The attempt cannot go on; only the ladder (`runner.training.loading.protected_load`) may try once more."""

    code = "training"


class MemoryExhaustedError(TrainingError):
    """The device or the host has too little memory. Never falls to a lower rung: it would need more."""

    code = "out-of-memory"


class ModelAccessError(TrainingError):
    """The base model is not there, not permitted, or the hub cannot be reached."""

    code = "model-not-found"


class ModelFilesError(TrainingError):
    """The base model's files are incomplete or damaged."""

    code = "model-corrupt"


class ConfigError(TrainingError):
    """The model's configuration cannot be read or contradicts the project."""

    code = "config-unreadable"


class TokenizerError(TrainingError):
    """The tokenizer cannot be loaded."""

    code = "tokenizer"


class DatasetError(TrainingError):
    """A dataset cannot be read or holds nothing to train on."""

    code = "dataset"


class TargetModulesError(TrainingError):
    """`target_modules` or `modules_to_save` names modules that the model does not have."""

    code = "target-modules"


class DiskFullError(TrainingError):
    """No space left where the run directory or the cache lies."""

    code = "disk-full"


def joined(errors: Sequence[TrainingError]) -> TrainingError:
    """Tell several errors as one, so that whoever mends the first does not start the job again to meet the second.

    Args:
        errors: At least one.

    Returns:
        The only one itself; else one of the first's class and code, with what all of them say.
    """
    if len(errors) == 1:
        return errors[0]
    messages = dict.fromkeys(error.message for error in errors)
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return type(errors[0])(" ".join(messages), hint=" ".join(hints) or None, code=errors[0].code)


@contextmanager
def noted(refused: list[TrainingError]) -> Iterator[None]:
    """Add what ends the block to the list and go on behind it; `joined` tells all of the list in the end."""
    try:
        yield
    except TrainingError as error:
        refused.append(error)


class LadderError(TrainingError):
    """Every permitted rung failed, or one did and the device has no room for the next."""

    code = "ladder-exhausted"


class AdapterError(TrainingError):
    """The saved adapter, loaded in a fresh process, is not the one that was trained."""

    code = "adapter-rejected"


class ResumeMismatchError(TrainingError):
    """The job's newest checkpoint was trained with other settings, data, or on another rung."""

    code = "resume-mismatch"
