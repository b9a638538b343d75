"""The loss on held-out rows is the model's own, weighted by tokens, and measuring it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from runner.reports import TraitLoss
from runner.training.data.mix import HeldOut
from runner.training.outcome.evaluation import Questions, evaluate
from runner.training.outcome.held_out import CHUNK, compare_losses, mean_loss, measure_losses
from runner.training.stopping import StopRequestedError, StopSwitch

NOTHING = Questions((), [], 1, [])


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    """Rows of five lengths, one longer than a chunk, each with a masked beginning."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, 500, (length,), generator=generator).tolist() for length in (5, 9, CHUNK + 40, 3, 20)]
    masked = [1, 4, 7, 2, 5]
    labels = [[-100] * mask + row[mask:] for row, mask in zip(rows, masked, strict=True)]
    return HeldOut("trait", rows, labels)


def _measure(model: Any, held_out: HeldOut, batch_size: int) -> TraitLoss:
    with torch.no_grad():
        [loss] = measure_losses(model, [held_out], batch_size=batch_size, pad_token_id=0)
    return loss


def test_the_loss_is_the_models_own_weighted_by_tokens(model: Any, held_out: HeldOut) -> None:
    sums, tokens = 0.0, 0
    for row, labels in zip(held_out.input_ids, held_out.labels, strict=True):
        with torch.no_grad():
            own = model(input_ids=torch.tensor([row]), labels=torch.tensor([labels])).loss
        counted = sum(label != -100 for label in labels[1:])
        sums, tokens = sums + float(own) * counted, tokens + counted

    measured = _measure(model, held_out, batch_size=2)

    assert (measured.trait_type, measured.rows, measured.tokens) == ("trait", 5, tokens)
    assert measured.loss == pytest.approx(sums / tokens, rel=1e-5)


def test_padding_and_batches_change_nothing(model: Any, held_out: HeldOut) -> None:
    alone, together = _measure(model, held_out, batch_size=1), _measure(model, held_out, batch_size=5)

    assert together.loss == pytest.approx(alone.loss, rel=1e-5)


def test_traits_together_weigh_as_many_tokens_as_they_have(model: Any, held_out: HeldOut) -> None:
    parts = [HeldOut("short", held_out.input_ids[:2], held_out.labels[:2])]
    parts.append(HeldOut("long", held_out.input_ids[2:], held_out.labels[2:]))

    with torch.no_grad():
        apart = measure_losses(model, parts, batch_size=2, pad_token_id=0)

    assert mean_loss(apart) == pytest.approx(_measure(model, held_out, batch_size=2).loss, rel=1e-6)


def test_measuring_leaves_mode_random_numbers_and_gradients_as_they_were(
    model: Any, tokenizer: Any, held_out: HeldOut
) -> None:
    model.train()
    # A layer that draws in inference mode as well, which none of the demo's does.
    hook = model.register_forward_pre_hook(lambda *_: torch.rand(1) and None)
    before = torch.random.get_rng_state()

    evaluated = evaluate(model, tokenizer, NOTHING, when="before", stop=StopSwitch(), held_out=[held_out], batch_size=2)
    hook.remove()

    assert len(evaluated.held_out) == 1
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_set_switch_ends_the_measuring(model: Any, tokenizer: Any, held_out: HeldOut) -> None:
    stop = StopSwitch()
    stop.set()

    with pytest.raises(StopRequestedError):
        evaluate(model, tokenizer, NOTHING, when="after", stop=stop, held_out=[held_out])


@pytest.mark.parametrize(
    ("rows", "after", "regressed"),
    [
        (1, 2.19, False),
        (1, 2.21, True),
        (100, 2.01, False),
        (100, 2.03, True),
        (100, 1.0, False),
        (1, float("nan"), True),
    ],
)
def test_a_trait_is_worse_when_its_loss_went_up_by_more_than_its_rows_make_likely(
    rows: int, after: float, *, regressed: bool
) -> None:
    before = TraitLoss(trait_type="tone", loss=2.0, rows=rows, tokens=10)

    [compared] = compare_losses([before], [before.model_copy(update={"loss": after})])

    assert (compared.before, compared.regressed) == (2.0, regressed)


def test_a_trait_that_was_not_measured_before_is_not_called_worse() -> None:
    after = TraitLoss(trait_type="tone", loss=2.0, rows=4, tokens=10)

    assert compare_losses([], [after]) == (after,)


def test_a_large_vocabulary_is_measured_in_smaller_batches_with_the_same_loss(
    model: Any, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = _measure(model, held_out, batch_size=5)
    rows: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True)
    monkeypatch.setattr("runner.training.outcome.held_out.LOGITS_AT_ONCE", 1)
    alone = _measure(model, held_out, batch_size=5)
    hook.remove()
    assert rows == [1] * 5
    assert alone.loss == pytest.approx(together.loss, rel=1e-5)
