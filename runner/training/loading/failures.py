"""Which errors of a rung let the ladder try the next one, and what the others mean: one table.

A lower rung needs more memory and reads the same files on the same device, so running out of memory, a lost GPU and
broken, missing or forbidden files end the attempt at once. Whatever else goes wrong while a rung loads or is probed may
be cured by another one. Outside load and probe nothing falls: the ladder catches nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from huggingface_hub.errors import (
    EntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from runner.errors import DiskFullError, MemoryExhaustedError, ModelAccessError, ModelFilesError, TrainingError
from runner.redaction import redact
from runner.reports import FailedRung, Rung
from runner.training.loading.failure_marks import (
    is_damaged,
    is_device_lost,
    is_dict_config,
    is_disk_full,
    is_dispatched,
    is_forbidden,
    is_missing_kernel,
    is_native_library,
    is_out_of_memory,
    is_refusal,
    is_untrainable,
    is_version_skew,
    is_weight_shape,
    is_weight_values,
)
from runner.training.stopping import StopRequestedError

_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class FailureClass:
    """One line of the table."""

    name: str
    """Kebab-case; `docs/LADDER.md` lists all of them."""
    recognised: Callable[[BaseException], bool]
    """Looks at one link of an error's chain."""
    meaning: str
    """What people are told, beside the error's own first line."""
    evidence: str
    """Where this was met: an upstream thread or a line of an installed library."""
    ends_with: Callable[[BaseException], TrainingError] | None = None
    """The error that ends the attempt; None where the next rung may be tried."""

    @property
    def falls(self) -> bool:
        """Whether the next rung may be tried."""
        return self.ends_with is None


def find_class(error: BaseException) -> FailureClass:
    """The line of the table that an error, or what it came from, belongs to.

    An ending anywhere in the chain wins: a library may wrap a lack of memory into an error of its own.
    """
    return _found(error)[0]


def classify(error: BaseException) -> TrainingError | None:
    """Say what an error of a rung means for the attempt.

    Args:
        error: What loading or probing raised; its causes are looked at, too.

    Returns:
        The error that ends the attempt, or None where the next rung may be tried.
    """
    found, link = _found(error)
    return None if found.ends_with is None else found.ends_with(link)


def describe_failure(rung: Rung, error: BaseException) -> FailedRung:
    """Record a rung's failure: class and first line, tokens redacted."""
    found = find_class(error)
    return FailedRung(
        rung=rung,
        error_class=type(error).__name__,
        reason=_first_line(error),
        failure_class=found.name,
        meaning=found.meaning,
    )


def _found(error: BaseException) -> tuple[FailureClass, BaseException]:
    for known in (ENDING, FALLING):
        for link in _chain(error):
            for candidate in known:
                if candidate.recognised(link):
                    return candidate, link
    return UNKNOWN, error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, each once."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    line = redact(next((line for line in lines if line), type(error).__name__))
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"


def _itself(error: BaseException) -> TrainingError:
    assert isinstance(error, TrainingError)  # noqa: S101  # as it was recognised
    return error


def _stopped(_: BaseException) -> TrainingError:
    return TrainingError("Somebody asked the run to stop.", code="stop-requested")


def _memory_exhausted(_: BaseException) -> TrainingError:
    return MemoryExhaustedError(
        "The base model does not fit into this device's memory. A lower rung would need more, so none was tried.",
        hint="Use a smaller base model or a pool with larger GPUs, or free the device from other processes.",
    )


def _disk_full(_: BaseException) -> TrainingError:
    return DiskFullError(
        "The disk is full where the base model is read or cached.", hint="Free some space, then start the job again."
    )


def _device_lost(error: BaseException) -> TrainingError:
    return TrainingError(
        f"The GPU failed or cannot be used by this process any more: {_first_line(error)}",
        hint="Start the job again. If it fails the same way, look at nvidia-smi and the driver's log on that host.",
        code="device-failed",
    )


def _damaged(error: BaseException) -> TrainingError:
    return ModelFilesError(
        f"The base model's weights are incomplete, damaged or of another shape than its config.json says: "
        f"{_first_line(error)}",
        hint="Delete the model's files and fetch them again.",
    )


def _gated(_: BaseException) -> TrainingError:
    return ModelAccessError(
        "The base model is gated, and this host's token may not read it.",
        hint="Ask for access on the model's page and set HF_TOKEN on the host.",
        code="model-gated",
    )


def _not_found(_: BaseException) -> TrainingError:
    return ModelAccessError(
        "The hub does not know the base model or its revision.", hint="Correct base_model or revision."
    )


def _offline(_: BaseException) -> TrainingError:
    return ModelAccessError(
        "A file of the base model is not on this host, and the hub cannot be reached.",
        hint="Copy the model to the host, or check its network.",
        code="model-offline",
    )


_GITHUB = "https://github.com"

ENDING = (
    FailureClass(
        "stop-requested",
        lambda error: isinstance(error, StopRequestedError | KeyboardInterrupt | SystemExit),
        "Somebody asked the run to stop.",
        "runner/training/stopping.py",
        _stopped,
    ),
    FailureClass(
        # Tokenizer, dataset, target_modules, config, model access and files: whoever raised it knows best.
        "explained",
        lambda error: isinstance(error, TrainingError),
        "One of our own errors, with message and hint: tokenizer, dataset, target_modules, config, model files …",
        "runner/errors.py",
        _itself,
    ),
    FailureClass(
        "dispatched-elsewhere",
        is_dispatched,
        "Out of memory in disguise: part of the model was to lie on the CPU or the disk.",
        f"{_GITHUB}/unslothai/unsloth/issues/1629",
        _memory_exhausted,
    ),
    FailureClass(
        "out-of-memory",
        is_out_of_memory,
        "The device or the host has too little memory; a lower rung needs two to four times as much for the weights.",
        "torch.OutOfMemoryError; c10/core/CPUAllocator.cpp",
        _memory_exhausted,
    ),
    FailureClass(
        "disk-full",
        is_disk_full,
        "No space left where the model is read or cached.",
        "errno ENOSPC, EDQUOT",
        _disk_full,
    ),
    FailureClass(
        "device-lost",
        is_device_lost,
        "CUDA is unavailable, or refuses this process everything after an error.",
        "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html (sticky errors)",
        _device_lost,
    ),
    FailureClass(
        "damaged-weights",
        is_damaged,
        "Weight files are cut, damaged, or of another shape than config.json says.",
        f"{_GITHUB}/hiyouga/LlamaFactory/issues/5201",
        _damaged,
    ),
    FailureClass(
        "gated",
        is_forbidden,
        "The hub refuses this host's token.",
        "huggingface_hub.errors.GatedRepoError, HTTP 401 and 403",
        _gated,
    ),
    FailureClass(
        "not-found",
        lambda error: isinstance(error, RepositoryNotFoundError | RevisionNotFoundError),
        "The hub knows no such model or revision.",
        "huggingface_hub.errors.RepositoryNotFoundError, HTTP 404",
        _not_found,
    ),
    FailureClass(
        "offline",
        lambda error: isinstance(error, OfflineModeIsEnabled | EntryNotFoundError | ConnectionError | TimeoutError),
        "A file is not on this host, and the hub cannot be reached.",
        "huggingface_hub.errors.LocalEntryNotFoundError, OfflineModeIsEnabled",
        _offline,
    ),
)
"""What no other rung can cure, in the order in which it is looked for."""

FALLING = (
    FailureClass(
        "native-library",
        is_native_library,
        "bitsandbytes' native library is missing or does not load; it shows at the first kernel only.",
        f"{_GITHUB}/bitsandbytes-foundation/bitsandbytes/issues/1559",
    ),
    FailureClass(
        "missing-kernel",
        is_missing_kernel,
        "This device has no kernel for an operation of this rung.",
        f"{_GITHUB}/bitsandbytes-foundation/bitsandbytes/issues/538",
    ),
    FailureClass(
        "dict-config",
        is_dict_config,
        "A configuration became a dict somewhere below the model, where the config guard does not reach.",
        f"{_GITHUB}/huggingface/transformers/issues/42374",
    ),
    FailureClass(
        "quantizer-refusal",
        is_refusal,
        "This rung's quantizer does not take this model: its architecture, files already quantized, a missing library.",
        "transformers/quantizers/auto.py, AutoHfQuantizer.merge_quantization_configs",
    ),
    FailureClass(
        "version-skew",
        is_version_skew,
        "Two installed libraries do not know each other's arguments; see the version report.",
        f"{_GITHUB}/bitsandbytes-foundation/bitsandbytes/pull/1900",
    ),
    FailureClass(
        "weight-values",
        is_weight_values,
        "The model's code multiplies a weight's raw values, which a quantized weight does not hold.",
        f"{_GITHUB}/bitsandbytes-foundation/bitsandbytes/issues/1331",
    ),
    FailureClass(
        "weight-shape",
        is_weight_shape,
        "The model's code reads a weight's shape, and a 4-bit weight is packed into one column.",
        f"{_GITHUB}/oobabooga/textgen/issues/5699",
    ),
    FailureClass(
        "untrainable",
        is_untrainable,
        "It loads and runs, but no usable gradient comes back.",
        f"{_GITHUB}/huggingface/peft/issues/1142",
    ),
)
"""What another rung may cure."""

UNKNOWN = FailureClass(
    "unknown",
    lambda _: True,
    "Nothing that the table of failures knows; it was raised while loading or probing, so another rung may hold.",
    "facts of the error itself: train.log has the traceback",
)
