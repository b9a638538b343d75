"""Whether a saved adapter holds, to the bit, the tensors that were trained: by a digest of each, taken from memory.

Logits alone cannot tell: a row of one small matrix that a disk has spoiled moves them by less than rounding may.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from runner.errors import AdapterError

WEIGHTS = "adapter_model.safetensors"
_SHOWN = 3


def digest_weights(model: Any) -> dict[str, str]:
    """Digest what `model.save_pretrained` writes.

    Args:
        model: A PeftModel, its precision settled.

    Returns:
        SHA-256 by the tensor's name in the file.
    """
    return _digests(get_peft_model_state_dict(model, save_embedding_layers=False))


def require_weights(folder: Path, digests: dict[str, str]) -> None:
    """Compare a file with what was trained.

    Args:
        folder: The saved adapter's.
        digests: From `digest_weights`.

    Raises:
        AdapterError: Tensors are missing, are too many, or are others.
    """
    found = _digests(load_file(folder / WEIGHTS))
    wrong = sorted(name for name in found.keys() | digests.keys() if found.get(name) != digests.get(name))
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise AdapterError(
            f"The saved adapter is not what was trained: {WEIGHTS} differs in {', '.join(wrong[:_SHOWN])}{more}.",
            hint="Check the disk of the run directory. It keeps the last checkpoint; starting the job again goes on "
            "from it.",
        )


def _digests(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: _digest(tensor) for name, tensor in tensors.items()}


def _digest(tensor: Tensor) -> str:
    # As bytes, because NumPy knows no bfloat16.
    plain: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(plain).hexdigest()
