"""Mixes the project's datasets by trait into the rows that are trained on."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import DatasetError
from runner.events import DataMixed
from runner.provenance import fingerprint_file
from runner.reports import ShareReport
from runner.rows import RowFile, read_rows
from runner.spec import DatasetShare, RunSpec
from runner.training.encoding import PLAIN_CHAT_TEMPLATE, EncodedRow, encode_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100
"""The label that torch's cross entropy skips."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mix:
    """The rows to train on, trait after trait, tokenized and truncated; the trainer shuffles them."""

    input_ids: list[list[int]]
    labels: list[list[int]]
    """Same shape: the token where it carries loss, else -100."""
    as_chat: bool
    """Whether every dataset holds messages, so that prompts are asked as a user's turn."""
    fingerprints: dict[int, str]
    """SHA-256 of each data file, by dataset id."""
    event: DataMixed


@dataclass(slots=True)
class _Tally:
    longest: int = 0
    truncated: int = 0
    dropped: int = 0


def draw_rows(available: int, share: DatasetShare, seed: int) -> list[int]:
    """Choose the rows of a dataset, in file order.

    The draw depends on the seed and the dataset's id alone: another dataset, or a second trait that uses the same
    one, changes nothing, and a larger percentage only adds rows.

    Args:
        available: Rows of the file, at least 1.
        share: The dataset and its percentage.
        seed: `training.seed`.
    """
    # Rounded half up: Python's own rounding would draw 2 of 5 at 50 % but 4 of 7.
    count = max(1, int(available * share.percentage / 100 + 0.5))
    order = list(range(available))
    random.Random(f"{seed}/{share.dataset_id}").shuffle(order)  # noqa: S311  # a repeatable draw, nothing secret
    return sorted(order[:count])


def read_datasets(spec: RunSpec, dataset_ids: Sequence[int], projects_dir: Path) -> dict[int, RowFile]:
    """Read data files whole.

    Raises:
        DatasetError: A file is missing or malformed; names file and row.
    """
    return {dataset_id: read_rows(projects_dir / spec.datasets[dataset_id].path) for dataset_id in dataset_ids}


def mix_data(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, projects_dir: Path) -> Mix:
    """Read, draw, tokenize and truncate the project's rows.

    Gives the tokenizer a plain chat template where messages need one and the base model brings none.

    Args:
        spec: The attempt's specification.
        tokenizer: The base model's tokenizer.
        projects_dir: The folder that data paths are relative to.

    Raises:
        DatasetError: A file is missing or malformed, or nothing of it can be trained on.
        TokenizerError: The tokenizer has no end token, or gives no offsets for messages.
    """
    shares = [(trait.trait_type, share) for trait in spec.project.traits for share in trait.datasets]
    files = read_datasets(spec, sorted({share.dataset_id for _, share in shares}), projects_dir)
    if tokenizer.chat_template is None and any(file.format == "messages" for file in files.values()):
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE

    input_ids: list[list[int]] = []
    labels: list[list[int]] = []
    reports: list[ShareReport] = []
    tally = _Tally()
    for trait_type, share in shares:
        file, entry = files[share.dataset_id], spec.datasets[share.dataset_id]
        drawn = [file.rows[index] for index in draw_rows(len(file.rows), share, spec.project.training.seed)]
        try:
            encoded = encode_rows(tokenizer, file.format, drawn)
        except DatasetError as error:
            raise DatasetError(f"{entry.path}: {error.message}", hint=error.hint) from error
        kept = _truncated(encoded, spec.project.training.max_length, tally)
        if not kept:
            raise DatasetError(
                f"{entry.path}: every prompt is longer than max_length ({spec.project.training.max_length} tokens), "
                "so no answer is left to learn.",
                hint=f"Raise training.max_length; the longest row has {tally.longest} tokens.",
            )
        input_ids += [row.input_ids for row in kept]
        labels += [
            [token if trained else IGNORED_LABEL for token, trained in zip(row.input_ids, row.trained, strict=True)]
            for row in kept
        ]
        reports.append(
            ShareReport(
                trait_type=trait_type,
                dataset_id=share.dataset_id,
                dataset_name=entry.name,
                percentage=share.percentage,
                rows_available=len(file.rows),
                rows_used=len(kept),
                trained_tokens=sum(_tokens_with_loss(row) for row in kept),
            )
        )
    if tally.dropped:
        _log.warning("%d rows dropped: max_length leaves nothing of their answers", tally.dropped)
    return Mix(
        input_ids=input_ids,
        labels=labels,
        as_chat=all(file.format == "messages" for file in files.values()),
        fingerprints={id_: fingerprint_file(projects_dir / spec.datasets[id_].path) for id_ in files},
        event=DataMixed(
            shares=tuple(reports),
            rows=len(input_ids),
            longest_tokens=tally.longest,
            truncated_rows=tally.truncated,
            dropped_rows=tally.dropped,
        ),
    )


def _truncated(rows: list[EncodedRow], max_length: int, tally: _Tally) -> list[EncodedRow]:
    """Cut rows at `max_length` and drop those that carry no loss any more."""
    kept = []
    for row in rows:
        tally.longest = max(tally.longest, len(row.input_ids))
        if len(row.input_ids) > max_length:
            tally.truncated += 1
        cut = replace(row, input_ids=row.input_ids[:max_length], trained=row.trained[:max_length])
        if _tokens_with_loss(cut):
            kept.append(cut)
        else:
            tally.dropped += 1
    return kept


def _tokens_with_loss(row: EncodedRow) -> int:
    """Count them; nothing comes before the first token, so nothing ever predicts it."""
    return sum(row.trained[1:])
