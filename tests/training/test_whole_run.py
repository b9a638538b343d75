"""Whole runs of the pipeline on models that make trouble: what is promised about them holds to the verified adapter."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from runner.events import (
    ChildEvent,
    Evaluated,
    LossEvaluated,
    ModelLoaded,
    RungFailed,
    RunSucceeded,
    TokenizerLoaded,
)
from runner.spec import RunSpec
from runner.training.outcome.adapter import plot_loss
from runner.training.outcome.held_out import mean_loss
from runner.training.pipeline import train

MakeSpec = Callable[..., RunSpec]

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]

A_FEW_STEPS = {"max_steps": 2, "max_length": 64, "logging_steps": 1, "per_device_train_batch_size": 4}


def run(spec: RunSpec, models_root: Path, folder: Path) -> tuple[list[ChildEvent], RunSucceeded]:
    events: list[ChildEvent] = []
    end = train(spec, folder / "run" / "attempt-1", events.append, models_root=models_root, projects_dir=folder / "p")
    assert isinstance(end, RunSucceeded)
    return events, end


@pytest.fixture
def processes_know_the_stubborn_models(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here / 'startup'}{os.pathsep}{here}")


@pytest.mark.usefixtures("processes_know_the_stubborn_models")
@pytest.mark.parametrize(
    ("model", "rung", "announcements"),
    [
        ("shape-reader", "8bit", ["⚠️ 4-bit quantization failed with "]),
        (
            "value-reader",
            "none",
            ["⚠️ 4-bit quantization failed with ", "⚠️ 8-bit quantization also failed, trying without quantization..."],
        ),
    ],
)
def test_a_model_that_a_rung_does_not_bear_trains_on_a_lower_one_to_a_verified_adapter(  # noqa: PLR0917 - fixtures
    model: str,
    rung: str,
    announcements: list[str],
    make_spec: MakeSpec,
    addition: list[dict[str, Any]],
    stubborn_root: Path,
    tmp_path: Path,
) -> None:
    spec = make_spec(tmp_path / "p", addition[:8], base_model=model, model_type=model, training=A_FEW_STEPS)

    events, end = run(spec, stubborn_root, tmp_path)

    said = [event.announcement for event in events if isinstance(event, RungFailed)]
    assert len(said) == len(announcements)
    assert all(sentence.startswith(words) for sentence, words in zip(said, announcements, strict=True))
    assert all(event.failed.reason in event.announcement for event in events if isinstance(event, RungFailed))
    receipt = json.loads((tmp_path / "run" / "attempt-1" / "receipt.json").read_text(encoding="utf-8"))
    assert (receipt["rung_asked"], receipt["rung"], end.summary.rung) == ("4bit", rung, rung)
    assert [one["rung"] for one in receipt["failed"]] == ["4bit", "8bit"][: len(announcements)]
    for one, sentence in zip(receipt["failed"], said, strict=True):
        assert one["error_class"] == "RuntimeError"
        assert one["reason"] in sentence
    card = (Path(end.adapter_path) / "README.md").read_text(encoding="utf-8")
    assert card.count("4-bit quantization failed with RuntimeError: ") == 1
    assert ("linear modules" in card) == (rung != "none")


def write_large_llama(folder: Path) -> None:
    """A local Llama of 100 001 vocabulary entries, as transformers 4.57.2 would have saved it."""
    vocabulary = {f"w{number}": number for number in range(99_998)} | {"<s>": 99_998, "</s>": 99_999, "<unk>": 100_000}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=99_998,
        eos_token_id=99_999,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    saved = json.loads((folder / "config.json").read_text()) | {"transformers_version": "4.57.2"}
    (folder / "config.json").write_text(json.dumps(saved))


def test_a_local_llama_of_more_than_100_000_entries_trains_in_4_bit_to_the_end(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    write_large_llama(tmp_path / "models" / "large")
    rows = [{"prompt": f"w{number} w{number + 1} ", "completion": f"w{number + 2}"} for number in range(8)]
    spec = make_spec(tmp_path / "p", rows, base_model="large", training=A_FEW_STEPS)
    if version("transformers") == "4.57.2":
        with pytest.raises(AttributeError, match="'dict' object has no attribute 'model_type'"):
            AutoTokenizer.from_pretrained(tmp_path / "models" / "large")

    events, end = run(spec, tmp_path / "models", tmp_path)

    (tokenizer,) = [event for event in events if isinstance(event, TokenizerLoaded)]
    (loaded,) = [event for event in events if isinstance(event, ModelLoaded)]
    assert (tokenizer.workaround is not None) == (version("transformers") == "4.57.2")
    assert loaded.receipt.quantized_modules > 0
    assert end.summary.rung == "4bit"


def test_the_adapter_of_the_lowest_held_out_loss_is_the_one_that_is_verified_and_told_of(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path
) -> None:
    # Nothing in one of these rows helps with another, so what is learned by heart makes the others worse.
    noise = [{"text": hashlib.sha256(bytes([number])).hexdigest()[:24]} for number in range(20)]
    training = A_FEW_STEPS | {"max_steps": 20, "learning_rate": 2e-2, "eval_strategy": "steps", "eval_steps": 1}
    spec = make_spec(
        tmp_path / "p",
        noise,
        percentages=[50],
        training=training | {"load_best_model_at_end": True, "early_stopping_patience": 2},
        evaluation={"held_out_percentage": 50.0},
        quantization={"ladder": ["none"]},
    )

    events, end = run(spec, models_root, tmp_path)

    measured = [event for event in events if isinstance(event, LossEvaluated)]
    best = min(measured, key=lambda event: event.loss).step
    assert (end.summary.adapter_step, end.summary.stopped_early_of) == (best, 20)
    assert end.summary.steps == best + 2
    adapter = Path(end.adapter_path)
    checkpoint = tmp_path / "run" / "attempt-1" / "checkpoints" / f"checkpoint-{best}"
    taken, stored = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, checkpoint))
    assert taken.keys() == stored.keys()
    assert all(taken[name].equal(stored[name]) for name in stored)
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert f"The adapter is that of step {best}, with the lowest held-out loss, " in card
    newest = max((tmp_path / "run" / "attempt-1" / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    history = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    [before, _] = [event for event in events if isinstance(event, Evaluated)]
    # With the base model's loss in the beginning, and a mark at the step whose adapter it is.
    plot_loss(history, tmp_path / "again.png", "test on tiny", base_loss=mean_loss(before.held_out), adapter_step=best)
    assert (adapter / "loss.png").read_bytes() == (tmp_path / "again.png").read_bytes()
