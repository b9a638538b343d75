"""Which errors of a rung let the ladder try the next one, and what the others mean.

A lower rung needs more memory and reads the same files, so running out of memory and broken, missing or forbidden
files end the attempt at once. Whatever else goes wrong while a rung loads or is probed may be cured by another one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from runner.errors import DiskFullError, MemoryExhaustedError, ModelAccessError, ModelFilesError, TrainingError
from runner.redaction import redact
from runner.reports import FailedRung, Rung

_REASON_LENGTH = 300

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    # accelerate's way of saying that the device is too small for the model.
    "some modules are dispatched on the cpu or the disk",
)
_DAMAGED = (
    "metadataincompletebuffer",
    "headertoolarge",
    "error while deserializing header",
    "size mismatch",
    "`ignore_mismatched_sizes`",
)


def classify(error: BaseException) -> TrainingError | None:
    """Say what an error of a rung means for the attempt.

    Args:
        error: What loading or probing raised; its causes are looked at, too.

    Returns:
        The error that ends the attempt, or None where the next rung may be tried.
    """
    for link in _chain(error):
        if isinstance(link, TrainingError):
            return link
        found = _out_of_memory(link) or _disk_full(link) or _damaged(link) or _no_access(link)
        if found is not None:
            return found
    return None


def describe_failure(rung: Rung, error: BaseException) -> FailedRung:
    """Record a rung's failure: class and first line, tokens redacted."""
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    reason = redact(first_line or type(error).__name__)
    if len(reason) > _REASON_LENGTH:
        reason = reason[: _REASON_LENGTH - 1] + "…"
    return FailedRung(rung=rung, error_class=type(error).__name__, reason=reason)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, each once."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had too little memory, in whosever words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | ValueError) and any(mark in text for mark in _OUT_OF_MEMORY)


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no space left; safetensors raises an error of its own, with the system's words in it."""
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error)


def _out_of_memory(error: BaseException) -> TrainingError | None:
    if not is_out_of_memory(error):
        return None
    return MemoryExhaustedError(
        "The base model does not fit into this device's memory. A lower rung would need more, so none was tried.",
        hint="Use a smaller base model or a pool with larger GPUs, or free the device from other processes.",
    )


def _disk_full(error: BaseException) -> TrainingError | None:
    if not is_disk_full(error):
        return None
    return DiskFullError(
        "The disk is full where the base model is read or cached.", hint="Free some space, then start the job again."
    )


def _damaged(error: BaseException) -> TrainingError | None:
    if not isinstance(error, SafetensorError) and not (
        isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in _DAMAGED)
    ):
        return None
    return ModelFilesError(
        f"The base model's weights are incomplete, damaged or of another shape than its config.json says: "
        f"{redact(next(iter(str(error).splitlines()), type(error).__name__))}",
        hint="Delete the model's files and fetch them again.",
    )


def _no_access(error: BaseException) -> TrainingError | None:
    if isinstance(error, GatedRepoError):
        return ModelAccessError(
            "The base model is gated, and this host's token may not read it.",
            hint="Ask for access on the model's page and set HF_TOKEN on the host.",
            code="model-gated",
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return ModelAccessError(
            "The hub does not know the base model or its revision.", hint="Correct base_model or revision."
        )
    if isinstance(error, OfflineModeIsEnabled | EntryNotFoundError | ConnectionError):
        return ModelAccessError(
            "A file of the base model is not on this host, and the hub cannot be reached.",
            hint="Copy the model to the host, or check its network.",
            code="model-offline",
        )
    return None
