from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from runner.training.loop.lean_lora import make_lora_lean


def _model(kind: str, **lora: Any) -> PeftModel:
    """Two layers, the second on top of the first, so that gradients go through a base weight."""
    torch.manual_seed(0)
    if kind.startswith("4bit"):
        layer: Any = Linear4bit
        bias = kind.endswith("bias")
        layers = [layer(64, 64, bias=bias, compute_dtype=torch.float32, quant_type="nf4") for _ in range(2)]
        model = nn.Sequential(*layers).to("cpu")
    else:
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0", "1"], **lora)
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return wrapped.train()


def _pass(model: PeftModel, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    output = model(x)
    output.square().mean().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return output, {name: leaf.grad for name, leaf in ({"x": x} | trained).items()}


@pytest.mark.parametrize("kind", ["4bit", "4bit with bias", "none"])
def test_output_and_gradients_are_those_of_peft(kind: str) -> None:
    model, x = _model(kind), torch.randn(3, 5, 64)
    expected = _pass(model, x)

    make_lora_lean(model)
    actual = _pass(model, x)

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}])
def test_what_is_more_than_a_plain_update_goes_the_way_of_peft(lora: dict[str, Any]) -> None:
    model, x = _model("none", **lora), torch.randn(3, 5, 64)
    torch.manual_seed(1)
    expected = _pass(model, x)

    make_lora_lean(model)
    torch.manual_seed(1)
    actual = _pass(model, x)

    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=0)


def test_evaluation_merging_and_switching_off_go_the_way_of_peft() -> None:
    model, x = _model("none"), torch.randn(2, 64)
    evaluated = model.eval()(x)

    make_lora_lean(model)

    assert torch.equal(model(x), evaluated)
    with model.train().disable_adapter():
        assert not torch.equal(model(x), evaluated)
    merged: Any = model.merge_and_unload()
    torch.testing.assert_close(merged(x), evaluated)
