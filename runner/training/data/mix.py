"""Mixes the project's datasets by trait into the rows that are trained on and those that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import DatasetError, TrainingError, joined
from runner.events import DataMixed
from runner.hyperparameters import Training
from runner.reports import ShareReport
from runner.rows import DatasetRows
from runner.spec import RunSpec
from runner.training.data.audit import Repeats, find_warnings
from runner.training.data.chat_template import settle_chat_template
from runner.training.data.draw import asked_of, draw_rows
from runner.training.data.encoding import encode_rows
from runner.training.data.reading import read_datasets
from runner.training.data.seen_prompts import SeenPrompts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100
"""The label that torch's cross entropy skips."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The rows of one trait that nobody trains on, tokenized and truncated as the others are."""

    trait_type: str
    input_ids: list[list[int]]
    labels: list[list[int]]
    """Same shape: the token where it carries loss, else -100."""


@dataclass(frozen=True, slots=True)
class Mix:
    """The rows to train on, trait after trait, tokenized and truncated; the trainer shuffles them."""

    input_ids: list[list[int]]
    labels: list[list[int]]
    """Same shape: the token where it carries loss, else -100."""
    held_out: tuple[HeldOut, ...]
    """One entry a trait that has such rows."""
    as_chat: bool
    """Whether every dataset holds messages, so that prompts are asked as a user's turn."""
    fingerprints: dict[int, str]
    """What pins each dataset, by its id: the SHA-256 of a data file."""
    event: DataMixed
    has_messages: bool = False
    """Whether any dataset holds messages, so that the chat template matters."""


def require_held_out(mix: Mix) -> None:
    """Refuse an evaluation during training that would have no rows.

    Raises:
        DatasetError: None is held out.
    """
    if not mix.held_out:
        raise DatasetError(
            "training.eval_strategy asks for the loss on held-out rows, but none of the rows is held out.",
            hint="Raise evaluation.held_out_percentage, use datasets of 10 rows and more, or remove eval_strategy.",
        )


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    """In its dataset."""
    input_ids: list[int]
    labels: list[int]
    length: int
    """Tokens before it was cut."""
    ends: bool
    """Whether its last token is a trained end token."""

    @property
    def tokens_with_loss(self) -> int:
        """Nothing comes before the first token, so nothing ever predicts it."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])


def mix_data(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, projects_dir: Path, *, embedding: Tensor | None = None
) -> Mix:
    """Read, draw, tokenize, truncate and audit the project's rows.

    Gives the tokenizer the chat template that messages are rendered with.

    Args:
        spec: The attempt's specification.
        tokenizer: The base model's tokenizer.
        projects_dir: The folder that data paths are relative to.
        embedding: (vocabulary, width), the base model's input embedding; without it, a chat template whose marks were
            never trained is not found out.

    Raises:
        DatasetError: Datasets are missing or malformed, or nothing of them can be trained on; tells of all of them.
        TokenizerError: The tokenizer has no end token, or gives no offsets for messages.
    """
    training, evaluation = spec.project.training, spec.project.evaluation
    shares = [(trait.trait_type, share) for trait in spec.project.traits for share in trait.datasets]
    files = read_datasets(spec, sorted({share.dataset_id for _, share in shares}), projects_dir)
    note = None
    has_messages = any(file.format == "messages" for file in files.values())
    if has_messages:
        note = settle_chat_template(tokenizer, embedding, training.chat_template)
    draws = draw_rows(
        shares,
        {dataset_id: len(file.rows) for dataset_id, file in files.items()},
        held_out_percentage=evaluation.held_out_percentage,
        seed=training.seed,
    )

    trained: list[_Row] = []
    held_out: list[list[_Row]] = []
    reports: list[ShareReport] = []
    repeats, asked = Repeats(), SeenPrompts(evaluation.prompts)
    refused: list[TrainingError] = []
    for (trait_type, share), draw in zip(shares, draws, strict=True):
        file, entry = files[share.dataset_id], spec.datasets[share.dataset_id]
        try:
            rows = _encode(tokenizer, file, [*draw.trained, *draw.held_out], training)
        except DatasetError as error:
            refused.append(DatasetError(f"{entry.source}: {error.message}", hint=error.hint))
            continue
        drawn, unseen = rows[: len(draw.trained)], rows[len(draw.trained) :]
        kept = [row for row in drawn if row.tokens_with_loss]
        longest = max(row.length for row in drawn)
        if not kept:
            refused.append(
                DatasetError(
                    f"{entry.source}: every prompt is longer than max_length ({training.max_length} tokens), "
                    "so no answer is left to learn.",
                    hint=f"Raise training.max_length; the longest row of {entry.source} has {longest} tokens.",
                )
            )
            continue
        for row in kept:
            repeats.add(share.dataset_id, row.number, row.input_ids)
            asked.trained_on(file.format, file.rows[row.number])
        measured = [row for row in unseen if row.tokens_with_loss]
        held_out.append(measured)
        trained += kept
        reports.append(
            ShareReport(
                trait_type=trait_type,
                dataset_id=share.dataset_id,
                dataset_name=entry.name,
                percentage=share.percentage,
                max_rows=share.max_rows,
                rows_available=len(file.rows),
                rows_used=len(kept),
                trained_tokens=sum(row.tokens_with_loss for row in kept),
                total_tokens=sum(len(row.input_ids) for row in kept),
                longest_tokens=longest,
                truncated_rows=sum(row.length > training.max_length for row in drawn),
                dropped_rows=len(drawn) - len(kept),
                endless_rows=sum(not row.ends for row in kept),
                held_out_percentage=asked_of(share, evaluation.held_out_percentage),
                held_out_drawn_rows=len(unseen),
                held_out_truncated_rows=sum(row.length > training.max_length for row in unseen),
                held_out_dropped_rows=len(unseen) - len(measured),
            )
        )
    if refused:
        raise joined(refused)
    # Once all rows are known: a row may stand in the training of another trait or dataset.
    clean = [[row for row in rows if not repeats.holds(row.input_ids)] for rows in held_out]
    reports = [
        report.model_copy(
            update={"held_out_rows": len(rows), "held_out_tokens": sum(row.tokens_with_loss for row in rows)}
        )
        for report, rows in zip(reports, clean, strict=True)
    ]
    return Mix(
        input_ids=[row.input_ids for row in trained],
        labels=[row.labels for row in trained],
        held_out=_by_trait([trait_type for trait_type, _ in shares], clean),
        as_chat=all(file.format == "messages" for file in files.values()),
        fingerprints={dataset_id: file.fingerprint for dataset_id, file in files.items()},
        event=_event(
            reports,
            repeats,
            leaked_rows=sum(map(len, held_out)) - sum(map(len, clean)),
            max_length=training.max_length,
            seen_prompts=asked.seen,
            note=note,
        ),
        has_messages=has_messages,
    )


def _encode(
    tokenizer: PreTrainedTokenizerBase, file: DatasetRows, numbers: Sequence[int], training: Training
) -> list[_Row]:
    """Encode rows of a dataset, say which tokens carry loss, and cut them at `max_length`."""
    whole = (file.format == "messages" and not training.assistant_only_loss) or (
        file.format == "prompt_completion" and not training.completion_only_loss
    )
    encoded = encode_rows(
        tokenizer, file.format, [file.rows[number] for number in numbers], numbers=[number + 1 for number in numbers]
    )
    rows = []
    for number, row in zip(numbers, encoded, strict=True):
        input_ids = row.input_ids[: training.max_length]
        labels = [
            token if on or whole else IGNORED_LABEL
            for token, on in zip(input_ids, row.trained[: training.max_length], strict=True)
        ]
        ends = labels[-1] == tokenizer.eos_token_id
        rows.append(_Row(number, input_ids, labels, length=len(row.input_ids), ends=ends))
    return rows


def _by_trait(trait_types: Sequence[str], held_out: Sequence[list[_Row]]) -> tuple[HeldOut, ...]:
    found = []
    for trait_type in dict.fromkeys(trait_types):
        rows = [row for name, rows in zip(trait_types, held_out, strict=True) if name == trait_type for row in rows]
        if rows:
            found.append(HeldOut(trait_type, [row.input_ids for row in rows], [row.labels for row in rows]))
    return tuple(found)


def _event(
    reports: Sequence[ShareReport],
    repeats: Repeats,
    *,
    leaked_rows: int,
    max_length: int,
    seen_prompts: tuple[str, ...],
    note: str | None,
) -> DataMixed:
    return DataMixed(
        shares=tuple(reports),
        rows=sum(report.rows_used for report in reports),
        longest_tokens=max(report.longest_tokens for report in reports),
        truncated_rows=sum(report.truncated_rows for report in reports),
        dropped_rows=sum(report.dropped_rows for report in reports),
        duplicate_rows=repeats.duplicates,
        repeated_rows=repeats.repeated,
        leaked_rows=leaked_rows,
        seen_prompts=seen_prompts,
        warnings=(
            *([note] if note else []),
            *find_warnings(
                reports,
                max_length=max_length,
                duplicate_rows=repeats.duplicates,
                repeated_rows=repeats.repeated,
                leaked_rows=leaked_rows,
            ),
        ),
    )
