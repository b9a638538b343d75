"""Whether a model keeps rows apart that are packed into one, so that none of them learns from its neighbour.

Packed rows follow each other without a mask; only their positions, which begin anew, tell one from the next. Models
that take positions by counting, that have none, or that carry a state along read a packed row as one long text, with no
error. OPT, BLOOM, Falcon and GPT-OSS do in transformers 5.23; GPT-J, StableLM and Mamba in 4.57 as well.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from runner.errors import TrainingError
from runner.training.loading.probe import differentiable_embeddings

_ROW_TOKENS = 8


def require_rows_apart(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Refuse to pack rows for a model in which a row depends on the one before it.

    Args:
        model: Loaded and prepared, on one device.
        compute_dtype: Of the autocast that training will run under.

    Raises:
        TrainingError: It does (`packing`).
    """
    device = model.device
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = torch.linspace(0, vocabulary - 1, 2 * _ROW_TOKENS, device=device).long().unsqueeze(0)
    positions = torch.arange(_ROW_TOKENS, device=device).repeat(2).unsqueeze(0)
    with differentiable_embeddings(model) as embedded:
        with torch.autocast(device.type, dtype=compute_dtype, enabled=compute_dtype != torch.float32):
            logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        # Different weights, because all logits of a position together may not depend on anything.
        weights = torch.linspace(-1, 1, logits.shape[-1], device=device)
        second = (logits[:, _ROW_TOKENS:].float() * weights).sum()
        (gradient,) = torch.autograd.grad(second, embedded[0])
    # What is masked has a weight of exactly zero, whatever rounds.
    if gradient[:, :_ROW_TOKENS].any():
        raise TrainingError(
            f"training.packing = true puts several rows into one, and {type(model).__name__} reads them as one text: "
            "each would learn to go on from the row before it.",
            hint="Set training.packing = false; training.group_by_length = true saves padding as well.",
            code="packing",
        )
