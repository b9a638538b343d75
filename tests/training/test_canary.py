"""The canary as a worker starts it: a child that trains one step for real, or says why it cannot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from runner.canary import train_one_step
from runner.errors import TrainingError
from runner.settings import load_settings
from runner.training import canary

pytestmark = pytest.mark.training


def test_a_host_that_trains_one_step_passes_and_keeps_no_log(tmp_path: Path) -> None:
    settings = dataclasses.replace(load_settings({}), state_dir=tmp_path)

    assert train_one_step(settings, "w") is None
    assert not (tmp_path / "canary" / "w").exists()


def test_a_host_that_cannot_says_why_and_keeps_the_log(tmp_path: Path) -> None:
    settings = dataclasses.replace(load_settings({}), state_dir=tmp_path)
    (tmp_path / "canary" / "demo-llama").mkdir(parents=True)

    wrong = train_one_step(settings, "w")

    assert wrong is not None
    assert "holds no complete demo model" in wrong
    assert "FileExistsError" in (tmp_path / "canary" / "w" / "train.log").read_text()


def test_a_step_after_which_the_loss_has_not_fallen_is_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "LEARNING_RATE", 0.0)

    with pytest.raises(TrainingError, match="it has to fall") as caught:
        canary.train_one_step(tmp_path, lambda _: None)

    assert caught.value.code == "canary"
