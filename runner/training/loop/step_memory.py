"""What one optimizer step holds in memory at its worst moment, found by running it on tensors that have no data.

Every operation of the real modules runs on torch's fake tensors, which have shape, type and device and take no memory;
what each makes is counted from when it comes to when the last reference to it goes. So a saving in a module, or
recomputing instead of keeping, shows here without anybody writing it down a second time.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl.trainer import utils as trl_utils
from typing_extensions import override

from runner.training.loop.loss import add_loss_only_forward

_CONTENTS = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001  # the operation behind `.item()`, `bool()`, `int()`
_INDEX = torch.ops.aten.index.Tensor


@dataclass(frozen=True, slots=True)
class BatchShape:
    """One batch, by its numbers."""

    rows: int
    tokens: int
    """Of each row, padding included."""
    trained_tokens: int
    """Positions that carry loss, in all rows together."""
    packed: bool = False
    """Whether the rows follow each other in one long row, as TRL lays packed rows out."""


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it bare
    """Counts the bytes of all storages that operations make, and answers what depends on numbers nobody has.

    Args:
        trained_tokens: Rows that a choice by a mask leaves.
        answer: The number that every tensor holds.
        known: Tensors that are there before, and stay.
    """

    def __init__(self, trained_tokens: int, *, answer: int, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.bytes = 0
        self.peak_bytes = 0
        self._trained_tokens = trained_tokens
        self._answer = answer
        self._sizes: dict[int, int] = dict.fromkeys((_key(tensor.untyped_storage()) for tensor in known), 0)

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _CONTENTS:
            return float(self._answer) if args[0].dtype.is_floating_point else self._answer
        if func is _INDEX and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            source, (mask,) = args
            made = source.new_empty((self._trained_tokens, *source.shape[mask.dim() :]))
        else:
            made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = _key(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


def _key(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)  # noqa: SLF001  # two Python objects of one storage have this in common


def step_bytes(
    model: Any,
    batch: BatchShape,
    *,
    device: torch.device,
    frozen_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    makes_logits: bool,
    accumulates: bool,
    label_smoothing: float,
) -> int:
    """Count what a forward and backward pass hold at most beside the model: activations, loss, gradients.

    Args:
        model: The base model with its adapter, on the meta device, in training mode, lean and checkpointing as it will
            be; afterwards it is of no use any more.
        batch: What goes through at once.
        device: Where the run will be; which kernel an operation takes depends on it.
        frozen_dtype: Of the parameters that are not trained.
        compute_dtype: Of autocast.
        makes_logits: Whether the model's own loss is trained on, because no leaner one computes the same.
        accumulates: Whether gradients of an earlier batch are there.
        label_smoothing: As in `[training]`.
    """
    with FakeTensorMode():
        _materialize(model, device, frozen_dtype)
        known = [*model.parameters(), *model.buffers()]
        base = model.get_base_model()
        options: dict[str, Any] = {}
        if makes_logits:
            if hasattr(trl_utils, "add_fused_lm_head"):
                trl_utils.add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
                options["fused_lm_head"] = True
        else:
            with _Held(0, answer=1, known=known):
                add_loss_only_forward(base, label_smoothing)
            options["loss_only"] = True
        held = _Held(batch.trained_tokens, answer=0, known=known)
        inputs = _inputs(batch, device)
        with held:
            for _ in range(2 if accumulates else 1):
                _step(model, inputs, options, device, compute_dtype)
    return held.peak_bytes


def _step(
    model: Any, inputs: dict[str, Tensor], options: dict[str, Any], device: torch.device, compute_dtype: torch.dtype
) -> None:
    mixed = compute_dtype in {torch.bfloat16, torch.float16}
    with torch.autocast(device.type, dtype=compute_dtype, enabled=mixed):
        output = model(**inputs, **options, use_cache=False)
        # TRL's own head gives every token's share of the loss.
        loss = output.loss if "fused_lm_head" not in options else -output.log_probs.sum()
        if getattr(output, "logits", None) is not None:
            # accelerate turns what a forward pass returns into float32, and TRL measures token accuracy on a copy.
            logits = output.logits.float()
            with torch.no_grad():
                logits[..., :-1, :].contiguous().argmax(dim=-1)
            del logits
    del output
    loss.backward()


def _inputs(batch: BatchShape, device: torch.device) -> dict[str, Tensor]:
    shape = (1, batch.rows * batch.tokens) if batch.packed else (batch.rows, batch.tokens)
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    return {"input_ids": ids, "labels": ids, "position_ids" if batch.packed else "attention_mask": torch.ones_like(ids)}


def _materialize(model: nn.Module, device: torch.device, frozen_dtype: torch.dtype) -> None:
    """Put tensors of the run's device and precision in the place of the meta device's; tied ones stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001  # setattr would check the type
            if parameter is not None:
                dtype = torch.float32 if parameter.requires_grad else frozen_dtype
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=dtype, device=device)
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]  # noqa: SLF001  # as above
        for name, buffer in module._buffers.items():  # noqa: SLF001  # as above
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)  # noqa: SLF001  # as above
