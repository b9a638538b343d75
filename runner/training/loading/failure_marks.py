"""By what an error of a rung is recognised: its type, and the words of the library that raised it.

One function a line of the table in `failures`; each looks at one link of an error's chain.
"""

from __future__ import annotations

import errno

import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from safetensors import SafetensorError

from runner.training.loading.probe import ProbeError
from runner.training.loading.quantized import EffectiveRungError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had too little memory, in whosever words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ValueError | OSError | SafetensorError) and _says(
        error,
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "std::bad_alloc",
        "cublas_status_alloc_failed",
        "some modules are dispatched on the cpu or the disk",
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no space left; safetensors raises an error of its own, with the system's words in it."""
    return (isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}) or (
        _says(error, "no space left on device", "disk quota exceeded")
    )


def is_dispatched(error: BaseException) -> bool:
    """Accelerate's way of saying that the device is too small for the model."""
    return isinstance(error, ValueError) and _says(error, "some modules are dispatched on the cpu or the disk")


def is_device_lost(error: BaseException) -> bool:
    """Errors after which CUDA refuses this process everything, and a driver that is not there."""
    return isinstance(error, RuntimeError | AssertionError) and _says(
        error,
        "device-side assert",
        "an illegal memory access",
        "unspecified launch failure",
        "uncorrectable ecc error",
        "found no nvidia driver",
        "torch not compiled with cuda enabled",
        "no cuda gpus are available",
        "cuda-capable device(s) is/are busy or unavailable",
    )


def is_damaged(error: BaseException) -> bool:
    """Weight files that are cut or broken, or tensors of another shape than the modules they belong to."""
    if isinstance(error, SafetensorError):
        return True
    # transformers' and torch's words for a tensor of another shape than the module; not torch's own "size mismatch,
    # got input", which a forward pass over a packed weight says.
    return isinstance(error, RuntimeError) and _says(error, "size mismatch for ", "ignore_mismatched_sizes")


def is_forbidden(error: BaseException) -> bool:
    """The hub refuses this host's token."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = response.status_code if response is not None else None
    return isinstance(error, GatedRepoError) or (
        status in {401, 403} and not isinstance(error, RepositoryNotFoundError)
    )


def is_weight_shape(error: BaseException) -> bool:
    """A view, a product or an unpacking that a weight packed into one column does not fit."""
    return isinstance(error, RuntimeError | ValueError | IndexError) and _says(
        error,
        "is invalid for input of size",
        "shapes cannot be multiplied",
        "size mismatch, got",
        "must match the size of tensor",
        "must match the existing size",
        "not enough values to unpack",
        "split_sizes to sum exactly to",
    )


def is_weight_values(error: BaseException) -> bool:
    """A product of floating point and the raw bytes of a quantized weight."""
    return isinstance(error, RuntimeError | TypeError | NotImplementedError) and (
        _says(
            error,
            "same dtype",
            "same data type",
            "not implemented for 'char'",
            "not implemented for 'byte'",
            "got char",
            "got byte",
        )
    )


def is_native_library(error: BaseException) -> bool:
    """Bitsandbytes' own words for a native library that did not load, or lacks the function called."""
    return _says(
        error,
        "not available in cpu-only version of bitsandbytes",
        "bitsandbytes native library",
        "compile the bitsandbytes library",
        "libbitsandbytes",
        "setup error: missing dependency",
    )


def is_missing_kernel(error: BaseException) -> bool:
    """PyTorch's, CUDA's and bitsandbytes' words for an operation that this device has no code for."""
    return isinstance(error, NotImplementedError | RuntimeError) and _says(
        error,
        "could not run '",
        "no kernel image is available",
        "invalid device function",
        "cublaslt ran into an error",
    )


def is_refusal(error: BaseException) -> bool:
    """A quantizer that declines a model before it has loaded, or our own count of what was really quantized."""
    if isinstance(error, EffectiveRungError):
        return True
    return any(
        _raised_in(error, package)
        for package in (
            "transformers.quantizers",
            "transformers.integrations.bitsandbytes",
            "transformers.utils.quantization_config",
        )
    )


def is_dict_config(error: BaseException) -> bool:
    """A configuration that something turned into a dict."""
    return isinstance(error, AttributeError) and _says(error, "'dict' object has no attribute")


def is_version_skew(error: BaseException) -> bool:
    """A call between two libraries that do not know each other."""
    return isinstance(error, TypeError) and _says(error, "unexpected keyword argument")


def is_untrainable(error: BaseException) -> bool:
    """A probe that ran and got no usable gradient."""
    return isinstance(error, ProbeError) or (
        isinstance(error, RuntimeError) and _says(error, "does not require grad", "not have been used in the graph")
    )


def _raised_in(error: BaseException, package: str) -> bool:
    """Whether the code that raised it is a package's own."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return module == package or module.startswith(f"{package}.")


def _says(error: BaseException, *marks: str) -> bool:
    text = str(error).lower()
    return any(mark in text for mark in marks)
