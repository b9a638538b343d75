"""Evaluations that do not fit into memory, for real: allocations that fail."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.errors import MemoryExhaustedError
from runner.events import Evaluated
from runner.spec import RunSpec
from runner.training.data.mix import Mix, mix_data
from runner.training.loading.failure_marks import is_out_of_memory
from runner.training.loading.protected_load import LoadedModel, protected_load
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import build_trainer
from runner.training.outcome.evaluation import Questions, evaluate, prepare_questions
from runner.training.outcome.fitting import Fitting
from runner.training.stopping import StopSwitch
from tests.training.too_little_memory import too_little_memory

pytestmark = pytest.mark.training


@dataclass(frozen=True)
class Asked:
    """A loaded model and what it is asked."""

    spec: RunSpec
    held: LoadedModel
    mix: Mix
    questions: Questions

    def evaluate(self) -> Evaluated:
        """Ask it, 8 rows at once."""
        return evaluate(
            self.held.model,
            self.held.tokenizer,
            self.questions,
            when="before",
            stop=StopSwitch(),
            held_out=self.mix.held_out,
            batch_size=8,
        )


@pytest.fixture(scope="module")
def asked(
    make_spec: Callable[..., RunSpec],
    models_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    addition: list[dict[str, Any]],
) -> Iterator[Asked]:
    """The demo's model in 4 bits with 20 questions, 2 prompts and 4 held-out rows."""
    folder = tmp_path_factory.mktemp("fitting") / "p"
    spec = make_spec(
        folder,
        addition[:20],
        percentages=[50],
        training={"eval_strategy": "steps", "per_device_train_batch_size": 8},
        quantization={"ladder": ["4bit"]},
        evaluation={
            "prompts": ["What is 3 + 4?", "And now?"],
            "exact_match": [1],
            "max_new_tokens": 3,
            "held_out_percentage": 40.0,
        },
    )
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as held:
        mix = mix_data(spec, held.tokenizer, folder)
        yield Asked(spec, held, mix, prepare_questions(spec, held.tokenizer, folder, as_chat=mix.as_chat))


def test_an_evaluation_that_does_not_fit_halves_its_rows_and_measures_the_same(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = asked.evaluate()

    with too_little_memory(asked.held.model, lambda rows: rows > 3):
        pieces = asked.evaluate()

    assert [(trait.rows, trait.tokens) for trait in pieces.held_out] == [(4, whole.held_out[0].tokens)]
    assert pieces.held_out[0].loss == pytest.approx(whole.held_out[0].loss, rel=1e-6)
    assert (pieces.samples, pieces.exact_match) == (whole.samples, whole.exact_match)
    told = capsys.readouterr().err
    # 4 held-out rows, then 20 questions.
    for rows, smaller in ((4, 2), (20, 10), (10, 5), (5, 2)):
        assert f"Evaluation: {rows} rows at once ran out of memory (" in told
        assert f"trying {smaller}." in told


def test_an_evaluation_in_mid_training_that_does_not_fit_measures_the_same(asked: Asked, tmp_path: Path) -> None:
    trainer = build_trainer(
        add_lora(asked.held.model, asked.spec.project.lora, 1),
        asked.held.tokenizer,
        asked.mix,
        asked.spec.project.training,
        output_dir=tmp_path,
        compute_dtype=asked.held.receipt.compute_dtype,
        callbacks=[],
    )
    whole = trainer.evaluate()["eval_loss"]

    with too_little_memory(asked.held.model, lambda rows: rows > 1):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(whole, rel=1e-6)


def test_a_row_that_does_not_fit_ends_the_evaluation_and_is_not_taken_for_the_trainings(asked: Asked) -> None:
    with pytest.raises(MemoryExhaustedError) as caught, too_little_memory(asked.held.model, lambda _: True):
        asked.evaluate()

    # What is taken for the training's halves its batch, which cures nothing here.
    assert not is_out_of_memory(caught.value)
    assert "allocate" in caught.value.message
    assert caught.value.hint is not None
    assert "training.max_length" in caught.value.hint


def test_what_is_no_lack_of_memory_is_not_tried_again() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise KeyError

    with pytest.raises(KeyError):
        Fitting(8).attempt(8, fail)

    assert calls == [1]
