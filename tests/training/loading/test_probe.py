from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from runner.training.loading.probe import ProbeError, probe
from runner.training.loading.quantized import EffectiveRungError, keep_training_layout, measure_quantization

pytestmark = pytest.mark.training


def small_model(**changes: Any) -> Any:
    values = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**(values | changes)))
    return model.requires_grad_(requires_grad=False)


class Detached(nn.Module):
    """Cuts the gradient, as a kernel without a backward does."""

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden.detach()


class Overflowing(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * float("inf")


def test_the_probe_measures_loss_and_gradient() -> None:
    result = probe(small_model(), torch.float32)
    assert 3.5 < result.loss < 5.0  # ln 64 is 4.16
    assert result.grad_norm > 0


def test_the_probe_leaves_no_trace() -> None:
    model = small_model(attention_dropout=0.5)
    model.eval()
    model.model.layers[0].train()
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    probe(model, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def test_a_probe_that_fails_leaves_no_trace_either() -> None:
    model = small_model()
    model.lm_head = nn.Linear(7, 64)
    model.eval()
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        probe(model, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert not model.get_input_embeddings()._forward_hooks


def test_the_probe_runs_in_training_mode() -> None:
    model = small_model()
    model.eval()
    seen: list[bool] = []
    model.lm_head.register_forward_hook(lambda module, *_: seen.append(module.training))
    probe(model, torch.float32)
    assert seen == [True]


def test_a_model_that_passes_no_gradient_fails_the_probe() -> None:
    model = small_model()
    model.model.norm = Detached()
    with pytest.raises((ProbeError, RuntimeError), match="grad"):
        probe(model, torch.float32)


def test_a_loss_that_is_not_a_number_fails_the_probe() -> None:
    model = small_model()
    model.model.norm = Overflowing()
    with pytest.raises(ProbeError, match=r"loss is (nan|inf)"):
        probe(model, torch.float32)


def test_a_gradient_of_zero_fails_the_probe() -> None:
    model = small_model()
    nn.init.zeros_(model.lm_head.weight)
    with pytest.raises(ProbeError, match=r"gradient norm at the embeddings is 0\.0"):
        probe(model, torch.float32)


def two_layers(kind: str) -> nn.Module:
    plain = nn.Linear(128, 64, bias=False)
    layers: dict[str, tuple[Any, dict[str, Any]]] = {
        "4bit": (Linear4bit, {"quant_type": "nf4", "compress_statistics": True}),
        "8bit": (Linear8bitLt, {"has_fp16_weights": False}),
        "none": (nn.Linear, {}),
    }
    layer, options = layers[kind]
    quantized = layer(128, 64, bias=False, **options)
    quantized.load_state_dict({"weight": torch.randn(64, 128)})
    return nn.Sequential(quantized.to("cpu"), plain)


@pytest.mark.parametrize(
    ("kind", "counts", "quantized_parameters"),
    [("4bit", (1, 0), 8192), ("8bit", (0, 1), 8192), ("none", (0, 0), 0)],
)
def test_quantized_modules_are_counted_by_their_class(
    kind: str, counts: tuple[int, int], quantized_parameters: int
) -> None:
    measured = measure_quantization(two_layers(kind))
    assert (measured.modules_4bit, measured.modules_8bit) == counts
    assert measured.linear_modules == 2
    assert measured.total_parameters == 2 * 8192
    assert measured.quantized_parameters == quantized_parameters


def test_bytes_are_those_of_weights_and_quantization_state() -> None:
    plain = 8192 * 4
    assert measure_quantization(two_layers("none")).model_bytes == 2 * plain
    four = measure_quantization(two_layers("4bit")).model_bytes - plain
    # 4096 bytes packed, 128 block constants in 8 bits, and the tables and constants of double quantization.
    assert 4096 + 128 < four < 4096 + 128 + 2048


def test_storage_that_is_shared_counts_once() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    measured = measure_quantization(model)
    assert (measured.total_parameters, measured.model_bytes) == (4096, 4096 * 4)


@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_a_rung_accepts_only_its_own_kind(rung: Any) -> None:
    for kind in ("4bit", "8bit", "none"):
        measured = measure_quantization(two_layers(kind))
        if kind == rung:
            measured.check(rung)
        else:
            with pytest.raises(EffectiveRungError, match="of 2 linear modules are 4-bit"):
                measured.check(rung)


def test_a_4_bit_layer_is_not_repacked_for_inference() -> None:
    torch.manual_seed(0)
    model = two_layers("4bit")
    keep_training_layout(model)
    layer: Any = model[0]  # type: ignore[index]  # a Sequential
    layer.eval()
    before = layer.weight.data.clone()
    with torch.no_grad():
        layer(torch.randn(2, 128))
    assert torch.equal(layer.weight.data, before)
