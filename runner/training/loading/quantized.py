"""What a loaded model really is: quantized modules counted one by one, logical parameters, bytes in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from runner.reports import Rung


class EffectiveRungError(Exception):
    """A model loaded without complaint, but not as the rung says."""


@dataclass(frozen=True, slots=True)
class EffectiveQuantization:
    """Counts over all modules of a model."""

    linear_modules: int
    """Linear modules of whatever class, `lm_head` included."""
    modules_4bit: int
    modules_8bit: int
    total_parameters: int
    """Logical parameters: a 4-bit weight counts its unpacked elements, a shared one counts once."""
    quantized_parameters: int
    """Of these, held in 4 or 8 bits."""
    model_bytes: int
    """Bytes of parameters, buffers and quantization state; storage that is shared counts once."""

    @property
    def quantized_modules(self) -> int:
        """Linear4bit and Linear8bitLt together."""
        return self.modules_4bit + self.modules_8bit

    def check(self, rung: Rung) -> None:
        """Refuse a model that is not what the rung promises.

        Raises:
            EffectiveRungError: It holds no module quantized so, or some quantized otherwise.
        """
        found = f"{self.modules_4bit} of {self.linear_modules} linear modules are 4-bit and {self.modules_8bit} 8-bit"
        expected = {
            "4bit": self.modules_4bit > 0 and self.modules_8bit == 0,
            "8bit": self.modules_8bit > 0 and self.modules_4bit == 0,
            "none": self.quantized_modules == 0,
        }
        if not expected[rung]:
            wanted = {"4bit": "4-bit", "8bit": "8-bit", "none": "no quantized"}[rung]
            raise EffectiveRungError(f"the model loaded, but not with {wanted} modules: {found}")


def measure_quantization(model: nn.Module) -> EffectiveQuantization:
    """Count what is really held quantized."""
    modules = list(model.modules())
    quantized = [parameter for parameter in model.parameters() if isinstance(parameter, Params4bit | Int8Params)]
    return EffectiveQuantization(
        linear_modules=sum(isinstance(module, nn.Linear | Conv1D) for module in modules),
        modules_4bit=sum(isinstance(module, Linear4bit) for module in modules),
        modules_8bit=sum(isinstance(module, Linear8bitLt) for module in modules),
        total_parameters=sum(_logical_elements(parameter) for parameter in model.parameters()),
        quantized_parameters=sum(_logical_elements(parameter) for parameter in quantized),
        model_bytes=_bytes(_tensors(model)),
    )


def keep_training_layout(model: nn.Module) -> None:
    """Forbid bitsandbytes to repack 4-bit weights for inference on a CPU.

    The first forward pass of a Linear4bit in `eval()` mode repacks its weight for a kernel that has no backward; the
    training after it gets wrong gradients without an error. The repacking also refuses input widths that are no
    multiple of 64. Source: `Linear4bit.forward` in bitsandbytes 0.49.0 to 0.50.2.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Let every 4-bit module compute in a precision; files stored in 4 bits bring the one they were made with."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = dtype, True


def _logical_elements(parameter: Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return prod(state.shape) if isinstance(state, QuantState) else parameter.numel()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            yield from _state_tensors(getattr(module.weight, "quant_state", None))
        elif isinstance(module, Linear8bitLt):
            # The first forward pass moves both from the weight to the module's own state.
            for holder in (module.weight, module.state):
                yield from (held for name in ("CB", "SCB") if isinstance(held := getattr(holder, name, None), Tensor))


def _state_tensors(state: QuantState | None) -> Iterator[Tensor]:
    if state is None:
        return
    yield from (held for name in ("absmax", "code", "offset") if isinstance(held := getattr(state, name), Tensor))
    # Double quantization: the state of the constants themselves.
    yield from _state_tensors(state.state2)


def _bytes(tensors: Iterable[Tensor]) -> int:
    sizes: dict[tuple[torch.device, int], int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        sizes[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
