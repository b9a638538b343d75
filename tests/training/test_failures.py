import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import safe_open

from runner.errors import TokenizerError, TrainingError
from runner.training.failures import classify, describe_failure

pytestmark = pytest.mark.training


def raised_by(action: Any) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  (the caller looks at what it is)
        action()
    return raised.value


def broken_file(folder: Path) -> Exception:
    (folder / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    return raised_by(lambda: safe_open(folder / "w.safetensors", framework="pt"))


def code_of(error: TrainingError | None) -> str | None:
    return error.code if error is not None else None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out-of-memory"),
        (RuntimeError("CUDA error: out of memory"), "out-of-memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out-of-memory"),
        (MemoryError(), "out-of-memory"),
        (ValueError("Some modules are dispatched on the CPU or the disk. Make sure you have RAM"), "out-of-memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk-full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk-full"),
        (RuntimeError("Error(s) in loading state_dict: size mismatch for lm_head.weight"), "model-corrupt"),
        (LocalEntryNotFoundError("not in the cache"), "model-offline"),
        (OfflineModeIsEnabled("offline"), "model-offline"),
        (TokenizerError("broken", hint="mend it"), "tokenizer"),
    ],
)
def test_what_no_rung_can_cure_ends_the_attempt(error: Exception, code: str) -> None:
    assert code_of(classify(error)) == code


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape '[1, 8, 2048]' is invalid for input of size 512"),
        RuntimeError("self and mat2 must have the same dtype, but got Float and Char"),
        TypeError("__init__() got an unexpected keyword argument '_is_hf_initialized'"),
        AttributeError("'dict' object has no attribute 'model_type'"),
        ImportError("libbitsandbytes_cpu.so"),
        ValueError("the memory format is not supported"),
        AssertionError(),
    ],
)
def test_what_another_rung_may_cure_falls(error: Exception) -> None:
    assert classify(error) is None


def test_a_real_allocation_failure_is_out_of_memory() -> None:
    error = raised_by(lambda: torch.empty(2**60, dtype=torch.uint8))
    assert code_of(classify(error)) == "out-of-memory"


def test_a_real_damaged_file_is_named_as_such(tmp_path: Path) -> None:
    assert code_of(classify(broken_file(tmp_path))) == "model-corrupt"


def test_the_cause_of_an_error_counts_too() -> None:
    error = ImportError("could not load the kernel")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert code_of(classify(error)) == "out-of-memory"


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first) is None


def test_our_own_error_comes_back_as_it_is() -> None:
    error = TokenizerError("broken", hint="mend it")
    assert classify(error) is error


def test_a_reason_is_the_first_line_without_tokens() -> None:
    failed = describe_failure("4bit", RuntimeError("\n  refused for hf_abcdefghijklmnop  \nand more\n"))
    assert (failed.rung, failed.error_class) == ("4bit", "RuntimeError")
    assert failed.reason == "refused for [redacted]"


def test_an_error_without_words_is_called_by_its_class() -> None:
    assert describe_failure("8bit", AssertionError()).reason == "AssertionError"


def test_a_long_reason_is_cut() -> None:
    reason = describe_failure("8bit", RuntimeError("x" * 1000)).reason
    assert len(reason) == 300
    assert reason.endswith("x…")
