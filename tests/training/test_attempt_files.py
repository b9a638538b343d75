"""What an attempt reads of what was written before it."""

from pathlib import Path

import pytest

from runner.events import ChildEvent, Evaluated, ModelLoaded
from runner.reports import Rung, Sample
from runner.training.attempt_files import earlier_baseline
from tests.examples import RECEIPT

RUNGS: tuple[Rung, ...] = ("4bit", "8bit", "none")

pytestmark = pytest.mark.training


def loaded(rung: Rung) -> ModelLoaded:
    return ModelLoaded(receipt=RECEIPT.model_copy(update={"rung": rung}))


def answered(text: str) -> Evaluated:
    return Evaluated(when="before", samples=(Sample(prompt="What is 3 + 4?", completion=text),))


def write(folder: Path, *events: ChildEvent) -> None:
    folder.mkdir()
    (folder / "events.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events), encoding="utf-8")


def test_the_base_model_has_answered_before_when_it_was_on_the_same_rung(tmp_path: Path) -> None:
    write(tmp_path / "attempt-1", loaded("8bit"), answered("11"))
    write(tmp_path / "attempt-2", loaded("4bit"), answered("7"))

    found = {rung: earlier_baseline(tmp_path / "attempt-2", rung, ["What is 3 + 4?"], {}) for rung in RUNGS}

    assert {rung: one and one.samples[0].completion for rung, one in found.items()} == {
        "4bit": "7",
        "8bit": "11",
        "none": None,
    }


@pytest.mark.parametrize(("prompts", "tables"), [(["What is 3 + 5?"], {}), ([], {}), (["What is 3 + 4?"], {1: 25})])
def test_answers_to_other_questions_are_no_baseline(tmp_path: Path, prompts: list[str], tables: dict[int, int]) -> None:
    write(tmp_path / "attempt-1", loaded("4bit"), answered("7"))

    assert earlier_baseline(tmp_path / "attempt-2", "4bit", prompts, tables) is None


def test_a_line_that_a_kill_has_cut_anywhere_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "attempt-1", loaded("4bit"), answered("7"))
    log = tmp_path / "attempt-1" / "events.jsonl"
    whole, line = log.read_bytes(), answered("sieben, für mich").model_dump_json().encode()

    found = []
    for end in range(len(line)):
        log.write_bytes(whole + line[:end])
        found.append(earlier_baseline(tmp_path / "attempt-2", "4bit", ["What is 3 + 4?"], {}))

    assert [one and one.samples[0].completion for one in found] == ["7"] * len(line)


def test_an_answer_may_hold_letters_that_end_a_line_of_text(tmp_path: Path) -> None:
    write(tmp_path / "attempt-1", loaded("4bit"), answered("7\u2028or\x858"))

    found = earlier_baseline(tmp_path / "attempt-2", "4bit", ["What is 3 + 4?"], {})

    assert found is not None
    assert found.samples[0].completion == "7\u2028or\x858"
