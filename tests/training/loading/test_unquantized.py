"""What escapes quantization is named and counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loads import load  # type: ignore[import-not-found]  # see conftest
from packaging.version import Version
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral import modeling_mixtral

from runner.reports import LoadReceipt
from runner.spec import RunSpec
from tests.training.model_folders import copy_tokenizer

pytestmark = pytest.mark.training

Make = Callable[..., RunSpec]
FUSES_EXPERTS = Version(transformers.__version__) >= Version("5")


@pytest.fixture
def make(make: Make) -> Make:
    """Make a specification of the mixture of experts."""
    return lambda **sections: make(base_model="experts", **sections)


@pytest.fixture(scope="module")
def experts_root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A models root with `experts`: a tiny mixture of 8 experts a layer."""
    root = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=8,
        tie_word_embeddings=False,
    )
    model: Any = MixtralForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(root / "experts")
    copy_tokenizer(tiny_model, root / "experts")
    return root


def escaped(receipt: LoadReceipt) -> dict[str, tuple[int, int]]:
    return {part.name: (part.tensors, part.parameters) for part in receipt.unquantized if part.kind == "escaped"}


def test_a_dense_model_leaves_nothing_behind_but_what_it_should(
    make_spec: Make, tmp_path: Path, models_root: Path
) -> None:
    receipt, _ = load(make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}]), models_root)
    assert [(part.name, part.kind, part.tensors) for part in receipt.unquantized] == [
        ("model.embed_tokens.weight", "embeddings", 1),
        ("lm_head.weight", "output layer", 1),
        ("norms and biases", "norms and biases", 9),
    ]
    assert (
        receipt.quantized_parameters + sum(part.parameters for part in receipt.unquantized) == receipt.total_parameters
    )
    assert receipt.warning is None


@pytest.mark.skipif(not FUSES_EXPERTS, reason="before transformers 5 every expert is a linear layer of its own")
@pytest.mark.parametrize("rung", ["4bit", "8bit"])
def test_fused_experts_are_named_and_warned_about(make: Make, experts_root: Path, rung: str) -> None:
    receipt, _ = load(make(quantization={"ladder": [rung]}), experts_root)
    fused = escaped(receipt)
    assert fused["model.layers.*.mlp.experts.gate_up_proj"] == (2, 2 * 8 * 2 * 128 * 64)
    assert fused["model.layers.*.mlp.experts.down_proj"] == (2, 2 * 8 * 128 * 64)
    assert receipt.escaped_share > 0.9
    assert receipt.warning is not None
    assert "model.layers.*.mlp.experts.gate_up_proj, model.layers.*.mlp.experts.down_proj" in receipt.warning
    # Not in float32, in which the model would take more than one that is not quantized.
    unquantized, _ = load(make(quantization={"ladder": ["none"]}), experts_root)
    assert receipt.model_bytes < unquantized.model_bytes * 1.3


@pytest.mark.skipif(FUSES_EXPERTS, reason="transformers 5 fuses experts")
def test_experts_that_are_layers_of_their_own_are_quantized(make: Make, experts_root: Path) -> None:
    receipt, _ = load(make(), experts_root)
    assert escaped(receipt) == {}
    assert receipt.warning is None


class OwnLinear(torch.nn.Linear):
    """A model's own kind of linear layer."""


def test_a_subclass_of_linear_is_counted_as_what_the_stack_makes_of_it(
    make: Make, experts_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention: Any = modeling_mixtral.MixtralAttention
    build = attention.__init__

    def with_own_linear(self: Any, config: Any, layer_idx: int) -> None:
        build(self, config, layer_idx)
        self.o_proj = OwnLinear(self.o_proj.in_features, self.o_proj.out_features, bias=False)

    monkeypatch.setattr(attention, "__init__", with_own_linear)
    receipt, _ = load(make(), experts_root)
    # transformers 4.57 replaces subclasses as well, and with them whatever they did differently.
    expected = (2, 2 * 64 * 64) if FUSES_EXPERTS else None
    assert escaped(receipt).get("model.layers.*.self_attn.o_proj.weight") == expected
