from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import OVERRIDE
from runner.overrides import KEYS, apply_overrides, parse_value
from runner.spec import ProjectSpec

RAW: dict[str, Any] = {"name": "x", "training": {"seed": 1, "max_steps": 5}}


def problem_of(key: str, text: str = "1") -> str:
    (problem,) = apply_overrides(RAW, {key: text}, file="x.toml")[2]
    assert (problem.file, problem.path) == (OVERRIDE, key)
    return problem.message


def test_a_bare_key_and_a_dotted_one_both_reach_their_table() -> None:
    changed, resolved, problems = apply_overrides(RAW, {"seed": "2", "lora.r": "8"}, file="x.toml")
    assert changed == {"name": "x", "training": {"seed": 2, "max_steps": 5}, "lora": {"r": 8}}
    assert resolved == {"training.seed": "2", "lora.r": "8"}
    assert problems == []


def test_the_file_as_read_stays_as_it_was() -> None:
    apply_overrides(RAW, {"seed": "2", "lora.r": "8"}, file="x.toml")
    assert RAW == {"name": "x", "training": {"seed": 1, "max_steps": 5}}


@pytest.mark.parametrize(
    "key",
    ["name", "base_model", "model_type", "output_directory", "traits", "compute", "compute.pool", "pool", "traits.x"],
)
def test_what_is_trained_on_and_where_cannot_be_overridden(key: str) -> None:
    assert problem_of(key) == "cannot be changed for one job; edit it in x.toml"


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    assert problem_of("lr") == "is not a setting; did you mean 'learning_rate'?"
    assert problem_of("quux") == "is not a setting"


def test_a_whole_table_cannot_be_set_but_its_settings_are_shown() -> None:
    assert problem_of("lora") == "is a table; name one of its settings, such as lora.r"


def test_the_same_setting_under_two_names_is_refused() -> None:
    changed, _, (problem,) = apply_overrides(RAW, {"r": "4", "lora.r": "8"}, file="x.toml")
    assert (problem.path, problem.message) == ("lora.r", "is given twice")
    assert changed["lora"] == {"r": 4}


def test_a_table_that_is_none_is_left_for_the_check_to_find() -> None:
    assert apply_overrides({"lora": 3}, {"r": "4"}, file="x.toml")[0] == {"lora": 3}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ("cosine", "cosine"),
        ('"cosine"', "cosine"),
        ("", ""),
        ('["4bit", "8bit"]', ["4bit", "8bit"]),
        ("[4bit,8bit]", ["4bit", "8bit"]),
        ("[What is 1 + 1?]", ["What is 1 + 1?"]),
        ("[1, 2]", [1, 2]),
        ("[]", []),
        ("[", "["),
        ("1\nother = 2", "1\nother = 2"),
        ("[" * 5_000 + "]" * 5_000, ["[" * 4_999 + "]" * 4_999]),
    ],
)
def test_a_typed_value_is_read_as_toml_else_as_text(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@settings(deadline=None)  # a busy machine is no finding
@given(st.text(max_size=40))
def test_every_text_has_a_value(text: str) -> None:
    parse_value(text)


def test_every_name_leads_to_a_setting_of_the_spec() -> None:
    for name, path in KEYS.items():
        table, key = path.split(".")
        assert name in {path, key}
        assert key in ProjectSpec.model_fields[table].annotation.model_fields  # type: ignore[union-attr]  # a model
