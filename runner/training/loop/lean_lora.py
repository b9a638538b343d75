"""LoRA layers whose training pass holds and copies less than peft's, and computes the same to the bit.

peft builds a layer's output from separate tensors: a copy of the base output, the adapter's share, that share scaled,
the sum, and on unquantized layers a float32 copy of the input. Here the share is scaled and added in place, and only
what the backward pass needs is kept: the input, which layers that read the same have in common, and the product of
low rank.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel


class _AddLora(torch.autograd.Function):
    """`result += scaling * ((x @ A.T) @ B.T)`, rounded where peft's operations under autocast round.

    The base layer stays a node of its own in the graph, so that the gradients of `x` are summed in peft's order.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes by position
        ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else a.dtype
        with torch.autocast(kind, enabled=False):
            inputs = x.to(dtype)
            inner = nn.functional.linear(inputs, a.to(dtype))
            result += nn.functional.linear(inner, b.to(dtype)).mul_(scaling)
        ctx.mark_dirty(result)
        ctx.save_for_backward(inputs, inner, a, b)
        ctx.scaling, ctx.input_dtype = scaling, x.dtype
        return result

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        inputs, inner, a, b = ctx.saved_tensors
        dtype = inputs.dtype
        gradient = outer.reshape(-1, outer.shape[-1]).to(dtype)
        # Scaled behind the product, where it is small.
        through = (gradient @ b.to(dtype)).mul_(ctx.scaling)
        a_gradient = (through.T @ inputs.reshape(-1, inputs.shape[-1])).to(a.dtype)
        b_gradient = (gradient.T @ inner.reshape(-1, inner.shape[-1])).to(b.dtype).mul_(ctx.scaling)
        x_gradient = (through @ a.to(dtype)).view(inputs.shape).to(ctx.input_dtype) if ctx.needs_input_grad[1] else None
        return outer, x_gradient, a_gradient, b_gradient, None


def make_lora_lean(model: PeftModel) -> None:
    """Give every LoRA layer that qualifies the lean pass; whatever does not train goes peft's own way as before."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and type(module.get_base_layer()) in {nn.Linear, Linear4bit}:
            module.forward = types.MethodType(_forward, module)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not (torch.is_grad_enabled() and self.training and not args and not kwargs and _is_plain(self)):
        return type(self).forward(self, x, *args, **kwargs)
    (name,) = self.active_adapters
    result = self.get_base_layer()(x)
    if result._is_view():  # noqa: SLF001  # there is no public way
        # As from a 4-bit layer with a bias; autograd refuses to change what such a function returned.
        result = result.clone()
    return _AddLora.apply(  # type: ignore[no-untyped-call]  # torch leaves it bare
        result, x, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
    )


def _is_plain(layer: Any) -> bool:
    """Whether the layer is one plain low-rank update beside a frozen base layer, without dropout, bias or variant."""
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return False
    name, base = names[0], layer.get_base_layer()
    return (
        name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_B[name].bias is None
        and not any(parameter.requires_grad for parameter in base.parameters())
    )
