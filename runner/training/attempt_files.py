"""The files that an attempt writes for those who come after it, and what it reads of those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from runner.event_lines import parse_event
from runner.events import Evaluated, ModelLoaded
from runner.reports import LoadReceipt, Rung
from runner.spec import RunSpec
from runner.training import ranks


def write_spec(run_dir: Path, spec: RunSpec) -> None:
    """Write `spec.json`, again when more is known; the first of several processes alone does."""
    if ranks.is_first():
        (run_dir / "spec.json").write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_receipt(run_dir: Path, receipt: LoadReceipt) -> None:
    """Write `receipt.json`; the first of several processes alone does."""
    if ranks.is_first():
        (run_dir / "receipt.json").write_text(receipt.model_dump_json(indent=2) + "\n", encoding="utf-8")


def earlier_baseline(run_dir: Path, rung: Rung, prompts: Sequence[str], tables: Mapping[int, int]) -> Evaluated | None:
    """Find what the base model answered before: the same model on the same rung answers the same.

    Args:
        run_dir: This attempt's folder; its own ranks may have been started before.
        rung: The one that holds now.
        prompts: What is asked now. A run that is gone on with may ask something else, as nothing is learned from it.
        tables: Rows that are asked of each dataset of `evaluation.exact_match`, by its id.
    """
    for path in sorted(run_dir.parent.glob("attempt-*/events.jsonl")):
        answered_on = None
        # As bytes: an answer may hold letters that end a line of text, and a kill may have left half a letter.
        for line in path.read_bytes().split(b"\n"):
            if not any(kind in line for kind in (b'"model_loaded"', b'"evaluated"')):
                continue
            try:
                event = parse_event(line)
            except ValidationError:
                continue  # half a line, of a killed attempt
            if isinstance(event, ModelLoaded):
                answered_on = event.receipt.rung
            if (
                isinstance(event, Evaluated)
                and event.when == "before"
                and answered_on == rung
                and [sample.prompt for sample in event.samples] == list(prompts)
                and {match.dataset_id: match.total for match in event.exact_match} == dict(tables)
            ):
                return event
    return None
