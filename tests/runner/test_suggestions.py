from __future__ import annotations

import pytest

from runner.overrides import KEYS
from runner.suggestions import did_you_mean, nearest


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learnin_rate", "learning_rate"),
        ("lr", "learning_rate"),
        ("epochs", "num_train_epochs"),
        ("alpha", "lora_alpha"),
        ("batch_size", "per_device_train_batch_size"),
        ("training.sed", "training.seed"),
        ("quux", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_what_people_mean(typed: str, meant: str | None) -> None:
    assert nearest(typed, KEYS) == meant


def test_the_end_of_the_sentence_is_empty_where_nothing_is_near() -> None:
    assert did_you_mean("lroa", ["lora"]) == "; did you mean 'lora'?"
    assert did_you_mean("quux", ["lora"]) == ""
