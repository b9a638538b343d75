from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, MixtralConfig

from runner.training.loop import loss as loss_module
from runner.training.loop.loss import LogitRule, add_loss_only_forward, linear_cross_entropy

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several blocks a call, the last one smaller."""
    monkeypatch.setattr(loss_module, "BLOCK_LOGITS", 1)
    monkeypatch.setattr(loss_module, "MIN_BLOCK_ROWS", 7)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(scale=0.25), LogitRule(scale=3.0, softcap=2.0)])
@pytest.mark.parametrize(("has_bias", "smoothing"), [(False, 0.0), (True, 0.0), (False, 0.1)])
def test_loss_and_gradients_are_those_of_whole_logits(rule: LogitRule, *, has_bias: bool, smoothing: float) -> None:
    hidden, weight, bias = (torch.randn(size, requires_grad=True) for size in ((30, 8), (50, 8), (50,)))
    used = [hidden, weight, *([bias] if has_bias else [])]
    labels = torch.randint(0, 50, (30,))
    labels[::4] = -100
    logits = rule.scale * (hidden @ weight.T + (bias if has_bias else 0))
    if rule.softcap:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    expected = cross_entropy(logits, labels, ignore_index=-100, reduction="sum", label_smoothing=smoothing) / 40
    expected_gradients = torch.autograd.grad(0.5 * expected, used)

    own_bias = bias if has_bias else None
    actual = linear_cross_entropy(hidden, weight, own_bias, labels, count=40, rule=rule, label_smoothing=smoothing)
    gradients = torch.autograd.grad(0.5 * actual, used)

    torch.testing.assert_close(actual, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_in_float16_a_step_of_many_labels_keeps_its_gradient() -> None:
    hidden, weight = (torch.randn(size).mul(0.3).half() for size in ((64, 32), (4000, 32)))
    labels, scale = torch.randint(0, 4000, (64,)), 2.0**16
    gradients = []
    for dtype in (torch.float32, torch.float16):
        one, other = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        scaled = scale * linear_cross_entropy(one, other, None, labels, count=20_000)
        gradients.append([gradient.float() for gradient in torch.autograd.grad(scaled, [one, other])])

    for wanted, gradient in zip(*gradients, strict=True):
        assert (gradient - wanted).norm() < 0.01 * wanted.norm()
    # Of most of the vocabulary, which no label names, too.
    unnamed = torch.ones(4000, dtype=torch.bool).index_fill(0, labels, value=False)
    wanted, gradient = (weights[unnamed] for _, weights in gradients)
    assert (gradient - wanted).norm() < 0.02 * wanted.norm()


def test_a_batch_without_labels_has_a_loss_and_a_gradient_of_zero() -> None:
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(50, 8)

    loss = linear_cross_entropy(hidden, weight, None, torch.full((6,), -100))
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare

    assert loss == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        (LlamaConfig(**SMALL, tie_word_embeddings=False), LogitRule()),
        (LlamaConfig(**SMALL, tie_word_embeddings=True), LogitRule()),
        (Gemma2Config(**SMALL, final_logit_softcapping=0.5, query_pre_attn_scalar=16), LogitRule(softcap=0.5)),
        (GraniteConfig(**SMALL, logits_scaling=8.0), LogitRule(scale=1 / 8)),
        (CohereConfig(**{name: value for name, value in SMALL.items() if name != "head_dim"}), LogitRule(0.0625)),
    ],
    ids=["llama", "tied", "gemma2", "granite", "cohere"],
)
def test_an_architecture_keeps_its_own_loss_without_its_logits(config: Any, rule: LogitRule) -> None:
    model: Any = AutoModelForCausalLM.from_config(config).train()  # type: ignore[no-untyped-call]  # left bare
    # The first random weights make logits near zero, where a softcap would not show.
    model.get_output_embeddings().weight.data.mul_(20)
    tokens = torch.randint(3, 96, (3, 12))
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens.clone()}
    inputs["labels"][:, :5] = -100
    own = model(**inputs)
    own.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    assert loss_module._find_rule(model) == rule
    assert add_loss_only_forward(model)
    ours = model(**inputs, loss_only=True)
    ours.loss.backward()

    assert ours.logits is None
    torch.testing.assert_close(ours.loss, own.loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])
    # Whoever does not ask for it gets the model's own output.
    torch.testing.assert_close(model(**inputs).logits, own.logits)


def test_a_mixture_of_experts_that_adds_a_loss_keeps_its_own_forward() -> None:
    config = MixtralConfig(**SMALL, num_local_experts=2, output_router_logits=True)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # left bare
    forward = model.forward

    assert not add_loss_only_forward(model)
    assert model.forward == forward


def test_logits_that_are_not_plainly_the_output_layers_are_noticed() -> None:
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))  # type: ignore[no-untyped-call]  # left bare
    own = model.forward

    def shifted(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = output.logits.roll(1, dims=-1)
        return output

    model.forward = shifted

    assert not add_loss_only_forward(model)
    assert model.forward is shifted
