from __future__ import annotations

import inspect
import re

import pytest

from runner import errors
from runner.errors import OVERRIDE, LadderError, Problem, QLoRAError, SpecError, TrainingError

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, QLoRAError)]


def test_message_and_hint_read_as_one_text() -> None:
    assert str(QLoRAError("It broke.", hint="Mend it.")) == "It broke. Mend it."
    assert str(QLoRAError("It broke.")) == "It broke."


def test_a_finer_code_replaces_the_class_own_for_one_error_only() -> None:
    assert TrainingError("x", code="disk-slow").code == "disk-slow"
    assert TrainingError("x").code == "training"


def test_an_exhausted_ladder_is_a_training_error() -> None:
    with pytest.raises(TrainingError):
        raise LadderError("Every rung failed.")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_kebab_case_code_and_stands_in_the_tree(kind: type[QLoRAError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
    assert f"{kind.__name__}" in (errors.__doc__ or "")


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in CLASSES]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("is bad", file="a.toml"), "a.toml: is bad"),
        (Problem("is bad", file="a.toml", line=3), "a.toml:3: is bad"),
        (Problem("is bad", file="a.toml", line=3, column=7), "a.toml:3:7: is bad"),
        (Problem("is bad", file="a.toml", line=3, path="lora.r"), "a.toml:3: lora.r: is bad"),
    ],
)
def test_a_problem_says_where_it_is(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_the_hint_names_what_has_to_be_corrected() -> None:
    typed = Problem("is bad", file=OVERRIDE, path="lora.r")
    written = Problem("is bad", file="a.toml")
    assert str(SpecError("a", [typed])) == "The settings for 'a' have 1 problem. Correct them, then start it again."
    assert str(SpecError("a", [typed, written])) == "Project 'a' has 2 problems. Edit the file, then start it again."
