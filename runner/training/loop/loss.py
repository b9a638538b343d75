"""The training loss without the logits: cross entropy straight from hidden states and the output layer's weight.

A batch's logits in float32 are the largest tensors of a training step, and most of them are made for positions that
carry no loss. Here only positions with a label are projected, a block at a time, and each block leaves behind what the
backward pass needs: the gradient of its hidden states. The numbers are those of the model's own loss.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from runner.training.data.mix import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK_LOGITS = 2**21
"""Logits held at once, in numbers: 8 MiB in float32."""
MIN_BLOCK_ROWS = 256
"""Below this, reading the output layer's weight for every block costs more than multiplying by it."""
AS_TRL_1 = Version(metadata.version("trl")) >= Version("1")
"""TRL 1 has a loss of its own, older ones take transformers'. They round in different places, and though either is
sound, a last bit that differs here moves the first layer's gradient by half a per cent: so we round as TRL does."""
FLOAT32_ROWS = 32768
"""Of the output layer's weight, turned into float32 at once."""
CHECK_TOKENS = 8
CHECK_TOLERANCE = 0.02
"""Between logits that were rounded to bfloat16 in different places, relative to the largest."""


@dataclass(frozen=True, slots=True)
class LogitRule:
    """What an architecture does to the output layer's product: `softcap * tanh(scale * product / softcap)`."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, product: Tensor) -> Tensor:
        """Turn products into logits."""
        logits = product if self.scale == 1 else product * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies of `rule(hidden @ weight.T + bias)`, over `count`."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        count: Tensor,
        rule: LogitRule,
        smoothing: float,
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with torch.autocast(kind, enabled=False):
            rows, matrix = hidden.to(dtype), weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            total = hidden.new_zeros((), dtype=torch.float32)
            hidden_gradient = torch.zeros_like(rows, dtype=torch.float32) if wants_hidden else None
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
            bias_gradient = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
            share = count.float().reciprocal()
            # Divided by the labels of a step, most of a gradient is below what float16 can tell from zero, and the
            # scaler comes too late to lift it: there it is divided in float32, behind the products.
            late = dtype == torch.float16
            size = max(MIN_BLOCK_ROWS, BLOCK_LOGITS // weight.shape[0])
            for start in range(0, rows.shape[0], size):
                block, wanted = rows[start : start + size], labels[start : start + size]
                product = nn.functional.linear(block, matrix, offset).float()
                with torch.set_grad_enabled(any(ctx.needs_input_grad)):
                    logits = rule.apply(product.requires_grad_(torch.is_grad_enabled()))
                    part = _summed(logits, wanted, smoothing) * (1 if late else share)
                total += part.detach()
                if not part.requires_grad:
                    continue
                gradient = torch.autograd.grad(part, product)[0].to(dtype)
                if hidden_gradient is not None:
                    _add_product(hidden_gradient[start : start + size], gradient, matrix)
                if weight_gradient is not None:
                    # A sum over many rows leaves float16's range.
                    wide = torch.float32 if late else dtype
                    _add_product(weight_gradient, gradient.T.to(wide), block.to(wide))
                if bias_gradient is not None:
                    bias_gradient += gradient.sum(0, dtype=torch.float32)
            if late:
                for whole in (total, hidden_gradient, weight_gradient, bias_gradient):
                    if whole is not None:
                        whole.mul_(share)
        ctx.gradients = hidden_gradient, weight_gradient, bias_gradient
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else (gradient * outer).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None)


def _summed(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    if smoothing or not AS_TRL_1:
        return nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    return (logits.logsumexp(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)).sum()


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to a float32 total."""
    if not AS_TRL_1 or total.device.type != "cpu":
        total += left @ right
        return
    for start in range(0, right.shape[0], FLOAT32_ROWS):
        part = slice(start, start + FLOAT32_ROWS)
        total.addmm_(left[:, part].float(), right[part].float())


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    count: Tensor | int | None = None,
    rule: LogitRule | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Average the cross entropy over the positions whose label is not -100.

    Args:
        hidden: (rows, width), the last hidden states.
        weight: (vocabulary, width), the output layer's.
        bias: (vocabulary,), or None.
        labels: (rows,) int64, the token that each row predicts.
        count: What the sum is divided by, such as the labels of all batches that make one step; None for these here.
        rule: What the architecture does to the product.
        label_smoothing: Share of each label that is spread over the whole vocabulary.

    Returns:
        A float32 scalar; zero, with a gradient of zero, where no label is left.
    """
    trained = labels != IGNORED_LABEL
    divisor = torch.as_tensor(trained.sum() if count is None else count, device=hidden.device).clamp(min=1)
    inputs = hidden[trained], weight, bias, labels[trained], divisor, rule or LogitRule(), label_smoothing
    loss: Tensor = _LinearCrossEntropy.apply(*inputs)  # type: ignore[no-untyped-call]  # torch leaves it bare
    return loss


def add_loss_only_forward(model: PreTrainedModel, label_smoothing: float = 0.0) -> bool:
    """Teach `model(..., labels=labels, loss_only=True)` to return the loss without logits.

    Args:
        model: A causal language model, without its adapter's wrapper.
        label_smoothing: As of `linear_cross_entropy`.

    Returns:
        Whether that is possible: on a few tokens, the model's own logits must be what a rule makes of its backbone's
        hidden states. Where none does, or where the loss has further terms, nothing has been changed.
    """
    rule = _find_rule(model)
    if rule is None:
        return False
    original = model.forward

    @functools.wraps(original)
    def forward(self: Any, *args: Any, loss_only: bool = False, **inputs: Any) -> Any:
        if not loss_only:
            return original(*args, **inputs)
        labels, count = inputs.pop("labels"), inputs.pop("num_items_in_batch", None)
        hidden = _backbone(self)(*args, **inputs)[0]
        # Looked up at every call: an adapter may have put a trained copy in its place.
        head = self.get_output_embeddings()
        rows, following = hidden[:, :-1].reshape(-1, hidden.shape[-1]), labels[:, 1:].reshape(-1)
        loss = linear_cross_entropy(
            rows, head.weight, head.bias, following, count=count, rule=rule, label_smoothing=label_smoothing
        )
        return CausalLMOutputWithPast(loss=loss)

    model.forward = types.MethodType(forward, model)
    return True


def _backbone(model: Any) -> Any:
    return getattr(model, model.base_model_prefix)


def _find_rule(model: PreTrainedModel) -> LogitRule | None:
    """Find what the model's forward pass does behind its backbone, None if it is more than a rule can say."""
    config = model.config.get_text_config()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers leaves it bare
    # A mixture of experts adds a loss of its routers; a quantized weight is no matrix.
    if (
        getattr(config, "output_router_logits", False)
        or not hasattr(model, model.base_model_prefix)
        or not isinstance(getattr(head, "weight", None), Tensor)
        or not head.weight.is_floating_point()
    ):
        return None
    softcap = getattr(config, "final_logit_softcapping", None)
    scales = [1.0]
    if (multiplier := getattr(config, "logit_scale", None)) is not None:
        scales.append(multiplier)
    if divisor := getattr(config, "logits_scaling", None):
        scales.append(1 / divisor)
    own, hidden = _own_logits(model)
    product = nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias).float()
    for rule in (LogitRule(scale, softcap) for scale in scales):
        error = (rule.apply(product) - own).abs().max()
        if error <= CHECK_TOLERANCE * own.abs().max():
            return rule
    return None


@torch.no_grad()
def _own_logits(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """The model's logits for a few tokens, and its backbone's hidden states for the same."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = torch.linspace(0, vocabulary - 1, CHECK_TOKENS, device=model.device).long().unsqueeze(0)
    kind, dtype = tokens.device.type, model.dtype
    before = [(module, module.training) for module in model.modules()]
    # Without dropout, so that both passes are the same and no random number is drawn.
    model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it bare
    try:
        with torch.autocast(kind, dtype=dtype, enabled=dtype in {torch.bfloat16, torch.float16}):
            logits = model(input_ids=tokens, use_cache=False).logits
            hidden = _backbone(model)(input_ids=tokens, use_cache=False)[0]
    finally:
        for module, training in before:
            module.training = training
    return logits[0].float(), hidden[0]
