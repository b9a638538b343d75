import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from runner.hyperparameters import Quantization
from runner.reports import LoadReceipt
from runner.spec import RunSpec
from runner.training.accelerator import choose_compute_dtype, choose_device
from runner.training.loading.base_model import BaseModel
from runner.training.loading.protected_load import protected_load
from runner.training.loading.quantized import EffectiveRungError
from runner.training.loading.weight_estimate import WeightEstimate, estimate_weights
from tests.training.model_folders import copy_tokenizer

pytestmark = [
    pytest.mark.training,
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
]

Make = Callable[..., RunSpec]

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 64},
    "mixtral": {"num_key_value_heads": 1, "num_local_experts": 4, "tie_word_embeddings": False},
    "gpt_neox": {"tie_word_embeddings": False},
}
"""Tied, Conv1D, experts (fused in transformers 5), biases."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A models root with one tiny random model of each shape."""
    root = tmp_path_factory.mktemp("zoo")
    for model_type, shape in SHAPES.items():
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        values = {"vocab_size": 512} | ({} if model_type == "gpt2" else sizes) | shape
        torch.manual_seed(1)
        factory: Any = AutoModelForCausalLM  # transformers leaves its methods bare
        model = factory.from_config(AutoConfig.for_model(model_type, **values))
        model.save_pretrained(root / model_type)
        copy_tokenizer(tiny_model, root / model_type)
    return root


def estimate(root: Path, name: str, rung: Any, **settings: Any) -> WeightEstimate:
    """From config.json alone."""
    config = AutoConfig.from_pretrained(root / name)
    dtype = choose_compute_dtype(choose_device())
    return estimate_weights(
        BaseModel(name, root / name, None), config, rung, Quantization.model_validate(settings), dtype
    )


def load(make_spec: Make, projects: Path, root: Path, name: str, **quantization: Any) -> LoadReceipt:
    spec = make_spec(projects, [{"prompt": "a", "completion": "b"}], base_model=name, quantization=quantization)
    with protected_load(spec, models_root=root, emit=lambda _: None) as loaded:
        return loaded.receipt


def same(estimated: WeightEstimate, receipt: LoadReceipt) -> None:
    assert estimated.total_parameters == receipt.total_parameters
    assert estimated.quantized_parameters == receipt.quantized_parameters
    assert estimated.model_bytes == pytest.approx(receipt.model_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("rung", "settings"),
    [
        ("4bit", {}),
        ("4bit", {"bnb_4bit_use_double_quant": False, "bnb_4bit_quant_type": "fp4"}),
        ("8bit", {}),
        ("none", {}),
    ],
)
def test_the_demo_model_takes_what_was_estimated(
    make_spec: Make, tmp_path: Path, models_root: Path, rung: str, settings: dict[str, Any]
) -> None:
    receipt = load(make_spec, tmp_path / "projects", models_root, "tiny", ladder=[rung], **settings)
    same(estimate(models_root, "tiny", rung, **settings), receipt)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_what_stays_unquantized_is_estimated_as_that(
    make_spec: Make, tmp_path: Path, zoo: Path, name: str, rung: str
) -> None:
    receipt = load(make_spec, tmp_path / "projects", zoo, name, ladder=[rung])
    same(estimate(zoo, name, rung), receipt)


def test_no_weight_file_is_needed(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "tiny").mkdir()
    shutil.copy(tiny_model / "config.json", tmp_path / "tiny" / "config.json")
    found = estimate(tmp_path, "tiny", "4bit")
    assert 0 < found.model_bytes < found.load_peak_bytes


def test_a_model_of_eight_billion_parameters_is_estimated_in_seconds_and_without_memory(
    tmp_path: Path,
) -> None:
    config = {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    }
    (tmp_path / "8b").mkdir()
    (tmp_path / "8b" / "config.json").write_text(json.dumps(config))
    four, none = estimate(tmp_path, "8b", "4bit"), estimate(tmp_path, "8b", "none")
    assert four.total_parameters == none.total_parameters == 8_030_261_248
    assert four.quantized_parameters == 6_979_321_856  # all but embeddings, output layer and norms
    assert none.quantized_parameters == 0
    # About 4.13 bits a quantized parameter; the rest in the compute precision.
    width = choose_compute_dtype(choose_device()).itemsize
    assert four.model_bytes == pytest.approx(6_979_321_856 * 4.13 / 8 + 1_050_939_392 * width, rel=0.01)


def test_a_model_stored_quantized_is_estimated_on_its_own_rung_only(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "stored"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
    (folder / "config.json").write_text(json.dumps(config))
    assert estimate(tmp_path, "stored", "4bit").quantized_parameters > 0
    with pytest.raises(EffectiveRungError, match="already quantized"):
        estimate(tmp_path, "stored", "8bit")
