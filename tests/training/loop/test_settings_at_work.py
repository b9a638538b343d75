"""What a hyperparameter does to a real training, seen in its losses."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from runner.hyperparameters import Lora
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import AdapterTrainer

Train = Callable[..., AdapterTrainer]
EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1}


def _logged(trainer: AdapterTrainer, key: str) -> list[float]:
    return [record[key] for record in trainer.state.log_history if key in record]


def test_neftune_is_noise_in_training_and_in_nothing_else(train_smallest: Train) -> None:
    # So slow that all runs have the same weights throughout.
    slow: dict[str, Any] = EVERY_STEP | {"max_steps": 3, "learning_rate": 1e-9}
    plain, noisy = train_smallest(**slow), train_smallest(**slow, neftune_noise_alpha=5.0)

    assert _logged(noisy, "loss") != pytest.approx(_logged(plain, "loss"), rel=1e-3)
    assert _logged(noisy, "eval_loss") == pytest.approx(_logged(plain, "eval_loss"), rel=1e-6)
    model: Any = noisy.model
    assert not model.get_input_embeddings()._forward_hooks, "answers and verification come after the training"


def test_batches_are_padded_to_the_multiple_without_a_change_of_the_loss(train_smallest: Train) -> None:
    slow: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-9}
    usual, padded = train_smallest(**slow), train_smallest(**slow, pad_to_multiple_of=64)

    assert next(iter(padded.get_train_dataloader()))["input_ids"].shape[1] == 64
    assert _logged(padded, "loss") == pytest.approx(_logged(usual, "loss"), rel=1e-5)


def test_with_lora_plus_the_second_matrices_learn_faster(train_smallest: Train) -> None:
    fast: dict[str, Any] = {"max_steps": 3, "learning_rate": 1e-3, "weight_decay": 0.1}
    usual, plus = train_smallest(**fast), train_smallest(**fast, loraplus_lr_ratio=8)

    optimizer, model = cast("Any", plus.optimizer), cast("Any", plus.model)
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {
        (names[id(weight)].split(".")[-3], group["initial_lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    assert rates == {("lora_A", 1e-3, 0.1), ("lora_B", 8e-3, 0.1)}
    assert _logged(plus, "learning_rate") == _logged(usual, "learning_rate")
    assert _logged(plus, "loss")[0] == _logged(usual, "loss")[0]
    assert _logged(plus, "loss")[-1] != pytest.approx(_logged(usual, "loss")[-1], rel=1e-7)


def test_recomputing_is_never_reentrant(train_smallest: Train) -> None:
    model: Any = train_smallest(max_steps=1, gradient_checkpointing=True).model
    layer = model.get_base_model().model.layers[0]

    assert layer.gradient_checkpointing
    assert layer._gradient_checkpointing_func.keywords == {"use_reentrant": False}


def test_an_orthogonal_start_changes_nothing_though_no_matrix_is_zero() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    tokens = torch.arange(8).unsqueeze(0)
    before = model(tokens).logits

    wrapped = add_lora(model, Lora(r=4, init_lora_weights="orthogonal"), seed=1)

    assert torch.allclose(wrapped(tokens).logits, before, atol=1e-5)
    assert all(weight.abs().max() > 0 for name, weight in wrapped.named_parameters() if "lora_" in name)


def test_an_improvement_below_the_threshold_counts_as_none(train_smallest: Train) -> None:
    improving: dict[str, Any] = EVERY_STEP | {"max_steps": 6, "learning_rate": 1e-2, "early_stopping_patience": 2}

    assert train_smallest(**improving).state.global_step == 6
    assert train_smallest(**improving, early_stopping_threshold=1.0).state.global_step == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", 1e-7),
        ("label_smoothing_factor", 0.2),
        ("loss_type", "dft"),
    ],
)
def test_a_setting_of_the_optimization_changes_what_is_learned(
    train_smallest: Train, name: str, value: float | str
) -> None:
    fast: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2}

    usual, changed = train_smallest(**fast), train_smallest(**fast, **{name: value})

    assert _logged(usual, "loss")[-1] != pytest.approx(_logged(changed, "loss")[-1], rel=1e-7)
