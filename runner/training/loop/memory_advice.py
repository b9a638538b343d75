"""What to say when not even one row fits: what it takes, what there is, and what would fit. Arithmetic, no trial."""

from __future__ import annotations

from runner.errors import MemoryExhaustedError
from runner.reports import Rung
from runner.spec import ProjectSpec
from runner.training.data.mix import Mix
from runner.training.loop.training_estimate import TrainingEstimate, longest_batch

_MB = 1_000_000
_STEP_TOKENS = 8
_MARGIN = 0.9
"""A step that was tried and failed needs more than there is, whatever the arithmetic says."""


def one_row_does_not_fit(
    estimate: TrainingEstimate,
    project: ProjectSpec,
    mix: Mix,
    rung: Rung,
    *,
    room: int,
) -> MemoryExhaustedError:
    """Make the error, with figures.

    Args:
        estimate: Of what training this base model takes.
        project: As it was tried, its batch size aside.
        mix: The rows.
        rung: That the base model was loaded on.
        room: Bytes that a step may take beside the loaded model.
    """
    training = project.training
    tokens = longest_batch(training, mix).tokens

    def needed(length: int, *, checkpointing: bool) -> int:
        changes = {"per_device_train_batch_size": 1, "max_length": length, "gradient_checkpointing": checkpointing}
        return estimate.bytes_of(rung, training.model_copy(update=changes)) or 0

    def parts(*, checkpointing: bool) -> tuple[int, float]:
        """What a row takes however short it is, and what each of its tokens takes."""
        whole, half = (needed(length, checkpointing=checkpointing) for length in (tokens, max(1, tokens // 2)))
        a_token = (whole - half) / max(1, tokens - tokens // 2)
        return max(0, whole - int(a_token * tokens)), a_token

    whole = needed(tokens, checkpointing=training.gradient_checkpointing)
    if not whole:
        return MemoryExhaustedError(
            f"Not even one row of {tokens} tokens at a time fits into memory, of which {_megabytes(room)} are free "
            "beside the loaded base model.",
            hint="Set training.gradient_checkpointing = true, or lower training.max_length. A pool with more memory "
            "helps, too.",
        )
    budget = min(room, int(whole * _MARGIN))
    advice = []
    for checkpointing in sorted({training.gradient_checkpointing, True}):
        fixed, a_token = parts(checkpointing=checkpointing)
        need = fixed + int(a_token * tokens)
        switch = "training.gradient_checkpointing = true"
        prefix = f"{switch} and " if checkpointing and not training.gradient_checkpointing else ""
        if prefix and need <= budget:
            advice.append(f"{switch} (about {_megabytes(need)})")
            continue
        fitting = int((budget - fixed) / a_token) // _STEP_TOKENS * _STEP_TOKENS if a_token > 0 else 0
        if fitting >= _STEP_TOKENS:
            taken = _megabytes(fixed + int(a_token * fitting))
            advice.append(f"{prefix}training.max_length = {fitting} (about {taken})")
    fixed, _ = parts(checkpointing=training.gradient_checkpointing)
    if project.lora.r > 1 and fixed > (whole - budget):
        advice.append(f"lora.r = {project.lora.r // 2} (at most {_megabytes(fixed // 2)} less)")
    hint = (
        f"What would fit: {'; or '.join(advice)}." if advice else "No setting makes it fit: use a smaller base model."
    )
    return MemoryExhaustedError(
        f"Not even one row of {tokens} tokens at a time fits into memory: a step takes about {_megabytes(whole)} "
        f"beside the loaded base model, of which {_megabytes(fixed)} however short the row is, as for adapter, "
        f"gradients and optimizer, and {_megabytes(room)} are free.",
        hint=f"{hint} A pool with more memory helps, too.",
    )


def _megabytes(number: int) -> str:
    return f"{number / 1000 / _MB:,.1f} GB" if number >= 1000 * _MB else f"{max(number, 0) / _MB:,.0f} MB"
