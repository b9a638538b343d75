"""The few settings by which people tell runs apart, each with who decided it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.main_settings import main_settings
from runner.projects import load_project

PROJECTS = Path(__file__).parents[2] / "projects"


def _told(**overrides: str) -> list[tuple[str, str, str]]:
    return [(one.name, one.value, one.origin) for one in main_settings(load_project(PROJECTS, "demo", overrides))]


def test_they_come_from_the_project_or_are_defaults() -> None:
    assert _told() == [
        ("learning_rate", "0.002", "project"),
        ("num_train_epochs", "20", "project"),
        ("effective batch", "20 rows", "project"),
        ("r", "16", "project"),
        ("lora_alpha", "32", "project"),
        ("asked for", "4-bit quantization", "project"),
    ]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"learning_rate": "1e-4"}, ("learning_rate", "0.0001", "override")),
        ({"max_steps": "6"}, ("max_steps", "6", "override")),
        ({"gradient_accumulation_steps": "2"}, ("effective batch", "40 rows (20 x 2)", "override")),
        ({"packing": "true"}, ("effective batch", "20 packs", "project")),
        ({"ladder": "[none]"}, ("asked for", "no quantization", "override")),
        ({"seed": "7"}, ("seed", "7", "override")),
        ({"max_steps": "6", "num_train_epochs": "2"}, ("num_train_epochs", "2", "override")),
    ],
)
def test_whatever_was_overridden_is_told_as_an_override(overrides: dict[str, str], told: tuple[str, str, str]) -> None:
    assert told in _told(**overrides)
