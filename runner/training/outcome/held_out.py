"""Measures the loss of each trait on its held-out rows; changes nothing in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from runner.reports import TraitLoss
from runner.training.data.mix import IGNORED_LABEL, HeldOut
from runner.training.outcome.fitting import Fitting

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 256
"""Positions whose logits are held in float32 at once: 131 MB with a vocabulary of 128,000."""
LOGITS_AT_ONCE = 2**28
"""Logits that one forward pass may make, half a gigabyte in bfloat16; training makes none, whatever its batch."""


def measure_losses(
    model: Any,
    held_out: Sequence[HeldOut],
    *,
    batch_size: int,
    pad_token_id: int,
    before_batch: Callable[[], None] = lambda: None,
) -> tuple[TraitLoss, ...]:
    """Mean cross entropy over the tokens that carry loss, by trait; a long row weighs as many tokens as it has.

    Args:
        model: Inside `runner.training.outcome.inference.untouched`.
        held_out: Rows by trait.
        batch_size: The most rows at once; fewer where their logits would be many, and half as many whenever memory
            runs out. A loss is a sum over its own tokens, so the losses do not depend on it.
        pad_token_id: Fills rows on the right; padding carries no loss.
        before_batch: Called before every batch; what it raises ends the measuring.
    """
    measured = []
    fitting = Fitting(batch_size)
    for trait in held_out:
        total, tokens = 0.0, 0
        # Rows of like length together: little padding.
        order = sorted(range(len(trait.input_ids)), key=lambda row: -len(trait.input_ids[row]))
        while order:
            before_batch()
            row_logits = len(trait.input_ids[order[0]]) * int(model.config.get_text_config().vocab_size)
            rows = max(1, min(fitting.rows, LOGITS_AT_ONCE // row_logits))
            batch = order[:rows]
            input_ids, labels = [trait.input_ids[row] for row in batch], [trait.labels[row] for row in batch]
            summed = fitting.attempt(len(batch), partial(_sum_of_losses, model, input_ids, labels, pad_token_id))
            if summed is None:
                continue
            loss, counted = summed
            total, tokens, order = total + loss, tokens + counted, order[rows:]
        measured.append(
            TraitLoss(trait_type=trait.trait_type, loss=total / tokens, rows=len(trait.input_ids), tokens=tokens)
        )
    return tuple(measured)


def mean_loss(losses: Sequence[TraitLoss]) -> float:
    """Mean over the tokens of all traits, in nats; at least one trait must have been measured."""
    return sum(one.loss * one.tokens for one in losses) / sum(one.tokens for one in losses)


def compare_losses(before: Sequence[TraitLoss], after: Sequence[TraitLoss]) -> tuple[TraitLoss, ...]:
    """Put beside each loss what it was before training, and mark those that went up by more than chance may do."""
    earlier = {one.trait_type: one.loss for one in before}
    return tuple(
        one.model_copy(update={"before": earlier[one.trait_type], "regressed": _went_up(earlier[one.trait_type], one)})
        if one.trait_type in earlier
        else one
        for one in after
    )


def _went_up(before: float, after: TraitLoss) -> bool:
    """Also where the loss is no number any more."""
    return not after.loss <= before * (1 + after.noise)


def _sum_of_losses(
    model: Any, input_ids: Sequence[list[int]], labels: Sequence[list[int]], pad_token_id: int
) -> tuple[float, int]:
    """Add up the losses of one batch.

    Returns:
        The sum in nats, and the number of tokens in it.
    """
    width = max(map(len, input_ids))
    padded = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in input_ids], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in input_ids], device=model.device)
    logits = model(input_ids=padded, attention_mask=mask, use_cache=False).logits
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    tokens = 0
    for row, wanted in zip(logits, labels, strict=True):
        for predicted, targets in _trained_positions(row, wanted):
            total += cross_entropy(predicted.float(), targets, reduction="sum")
            tokens += len(targets)
    return float(total), tokens


def _trained_positions(logits: Tensor, labels: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (positions, vocabulary) logits and (positions,) targets of those tokens that carry loss, in chunks.

    Args:
        logits: (padded tokens, vocabulary); each position predicts the token after it.
        labels: Of the row without its padding.
    """
    positions = [place for place, label in enumerate(labels[1:]) if label != IGNORED_LABEL]
    for first in range(0, len(positions), CHUNK):
        chosen = positions[first : first + CHUNK]
        targets = torch.tensor([labels[place + 1] for place in chosen], device=logits.device)
        yield logits[torch.tensor(chosen, device=logits.device)], targets
