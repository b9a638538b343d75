"""Finds what is wrong with encoded rows before a step is made of them: no label, no end, the same row twice."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from runner.reports import ShareReport
from runner.training.data.draw import FEWEST_ROWS


@dataclass(slots=True)
class Repeats:
    """Counts rows that are met again, by where they come from and by what they are."""

    duplicates: int = 0
    """Rows of another place that are token for token a row met before."""
    repeated: int = 0
    """Rows met before at the very same place: two traits use them."""
    _places: set[tuple[int, int]] = field(default_factory=set)
    _contents: set[bytes] = field(default_factory=set)

    def add(self, dataset_id: int, row: int, input_ids: Sequence[int]) -> None:
        """Count a row that is trained on.

        Args:
            dataset_id: Its dataset.
            row: Its number in that dataset.
            input_ids: Its tokens, truncated.
        """
        content = _digest(input_ids)
        if (dataset_id, row) in self._places:
            self.repeated += 1
        elif content in self._contents:
            self.duplicates += 1
        self._places.add((dataset_id, row))
        self._contents.add(content)

    def holds(self, input_ids: Sequence[int]) -> bool:
        """Whether a row with these tokens is trained on."""
        return _digest(input_ids) in self._contents


def _digest(input_ids: Sequence[int]) -> bytes:
    """Sixteen bytes for a row, because all rows of a mix are remembered."""
    return hashlib.blake2b(array("q", input_ids), digest_size=16).digest()


def find_warnings(
    shares: Iterable[ShareReport],
    *,
    max_length: int,
    duplicate_rows: int,
    repeated_rows: int,
    leaked_rows: int,
) -> tuple[str, ...]:
    """Say what is wrong with the rows, each with what to do about it.

    Args:
        shares: What each dataset of each trait contributed.
        max_length: Tokens at which rows were cut.
        duplicate_rows: As in `DataMixed`.
        repeated_rows: As in `DataMixed`.
        leaked_rows: As in `DataMixed`.
    """
    found = []
    for share in shares:
        drawn = share.rows_used + share.dropped_rows
        if share.dropped_rows:
            found.append(
                f"{share.dataset_name}: {_of(share.dropped_rows, drawn)} left out, because max_length ({max_length} "
                f"tokens) leaves nothing of the answer. Raise training.max_length; the longest row has "
                f"{share.longest_tokens:,} tokens."
            )
        if share.endless_rows:
            found.append(
                f"{share.dataset_name}: {_of(share.endless_rows, drawn)} cut at max_length ({max_length} tokens), so "
                f"they do not teach where to end. Raise training.max_length (the longest row has "
                f"{share.longest_tokens:,} tokens), or shorten the rows."
            )
        found += _held_out(share, max_length)
        if share.held_out_percentage and share.rows_available < FEWEST_ROWS:
            found.append(
                f"{share.dataset_name}: {_rows(share.rows_available)}, too few to hold one out; "
                f"from {FEWEST_ROWS} rows on there is a held-out loss."
            )
    if duplicate_rows:
        found.append(
            f"{_rows(duplicate_rows)} in training equal another row there token for token, and so weigh double. "
            "Remove them from the data files unless that is meant."
        )
    if repeated_rows:
        found.append(
            f"{_rows(repeated_rows)} belong to more than one trait and are trained on once for each. "
            "Use every dataset in one trait only unless that is meant."
        )
    if leaked_rows:
        found.append(
            f"{_rows(leaked_rows)} drawn to be held out stand in training too, token for token; the held-out loss "
            "leaves them out. Remove the duplicates from the data files."
        )
    return tuple(found)


def _held_out(share: ShareReport, max_length: int) -> list[str]:
    """What `max_length` takes away from the rows that the trait's loss is measured on."""
    dropped, drawn = share.held_out_dropped_rows, share.held_out_drawn_rows
    cut = share.held_out_truncated_rows - dropped
    found = []
    if dropped:
        found.append(
            f"{share.dataset_name}: {_of(dropped, drawn)} held out of {share.trait_type} left out of its loss, because "
            f"max_length ({max_length} tokens) leaves nothing of the answer. Raise training.max_length."
        )
    if cut:
        found.append(
            f"{share.dataset_name}: {_of(cut, drawn)} held out of {share.trait_type} cut at max_length ({max_length} "
            "tokens): its loss knows only their beginning. Raise training.max_length."
        )
    return found


def _of(rows: int, drawn: int) -> str:
    share = 100 * rows / drawn
    if rows < drawn:
        share = min(share, 99)  # a hundred per cent means all
    return f"{rows:,} of {_rows(drawn)} ({share:.{'0f' if share >= 10 else '2g'}} %)"  # noqa: PLR2004 - above, no fractions


def _rows(rows: int) -> str:
    return f"{rows:,} row" if rows == 1 else f"{rows:,} rows"
