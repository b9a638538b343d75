"""Base models whose files are quantized already: by bitsandbytes, or by another library."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from loads import announcements, failed_rungs, failing_load, load  # type: ignore[import-not-found]  # see conftest
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, GptOssForCausalLM

from runner.errors import ConfigError, LadderError
from runner.events import PhaseStarted
from runner.hyperparameters import Quantization
from runner.spec import RunSpec
from runner.training.loading.base_model import BaseModel
from runner.training.loading.model_config import load_model_config
from runner.training.loading.protected_load import LoadedModel, protected_load
from runner.training.loading.quantization_config import ask_for_rung
from runner.training.loading.quantized import EffectiveRungError, measure_quantization
from runner.training.loading.weight_estimate import estimate_weights
from runner.training.outcome.recipe import render_recipe
from tests.training.model_folders import copy_tokenizer

pytestmark = [
    pytest.mark.training,
    # bitsandbytes 0.49 warns whenever an 8-bit module gets another input than float16.
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
]

Make = Callable[..., RunSpec]
UNPACKS_FP8 = Version(transformers.__version__) >= Version("5")


def say_quantized(folder: Path, stored: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": stored}
    (folder / "config.json").write_text(json.dumps(config))


# --- by bitsandbytes ----------------------------------------------------------------------------------------------


def test_a_model_stored_in_4_bits_loads_as_it_is(make: Make, prequantized_root: Path) -> None:
    receipt, _ = load(make(base_model="tiny-bnb-4bit"), prequantized_root)
    assert (receipt.rung, receipt.quantized_modules) == ("4bit", 28)
    assert receipt.stored_quantization == "bitsandbytes, 4-bit"


def test_a_model_stored_in_4_bits_computes_in_this_hosts_precision(make: Make, prequantized_root: Path) -> None:
    with protected_load(make(base_model="tiny-bnb-4bit"), models_root=prequantized_root, emit=lambda _: None) as loaded:
        model: Any = loaded.model
        stored = model.config.quantization_config.bnb_4bit_compute_dtype
        assert stored == torch.float32
        assert str(model.model.layers[0].mlp.up_proj.compute_dtype) == f"torch.{loaded.receipt.compute_dtype}"


@pytest.mark.parametrize("rung", ["8bit", "none"])
def test_a_model_stored_in_4_bits_is_nothing_else(make: Make, prequantized_root: Path, rung: str) -> None:
    spec = make(base_model="tiny-bnb-4bit", quantization={"ladder": [rung]})
    error, _ = failing_load(spec, prequantized_root)
    assert isinstance(error, LadderError)
    assert "already quantized (bitsandbytes, 4-bit)" in error.message
    assert error.hint is not None
    assert error.hint.startswith("Add '4bit' to quantization.ladder")


def test_a_model_stored_in_8_bits_loads_on_that_rung_and_computes_as_one_quantized_while_it_loads(
    make: Make, tiny_model: Path, tmp_path: Path
) -> None:
    settings: Any = BitsAndBytesConfig
    model: Any = AutoModelForCausalLM.from_pretrained(
        tiny_model, quantization_config=settings(load_in_8bit=True), device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny")
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny-8bit")
    model.save_pretrained(tmp_path / "models" / "tiny-8bit")

    receipt, events = load(make(base_model="tiny-8bit"), tmp_path / "models")
    plain, _ = load(make(quantization={"ladder": ["8bit"]}), tmp_path / "models")

    assert (receipt.rung, receipt.quantized_modules, receipt.stored_quantization) == ("8bit", 28, "bitsandbytes, 8-bit")
    assert announcements(events)[0] == (
        "⚠️ 4-bit quantization failed with the base model's files are already quantized (bitsandbytes, 8-bit), trying "
        "8-bit quantization..."
    )
    assert receipt.probe_loss == pytest.approx(plain.probe_loss, rel=1e-3)


def test_the_count_of_modules_refuses_what_a_library_loaded_otherwise_than_asked(prequantized_root: Path) -> None:
    # As transformers answers whoever asks these files for another rung: with a warning and a 4-bit model.
    settings: Any = BitsAndBytesConfig
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        model: Any = AutoModelForCausalLM.from_pretrained(
            prequantized_root / "tiny-bnb-4bit", quantization_config=settings(load_in_8bit=True), device_map={"": "cpu"}
        )
    counted = measure_quantization(model)
    counted.check("4bit")
    for rung in ("8bit", "none"):
        with pytest.raises(EffectiveRungError, match="28 of 29 linear modules are 4-bit and 0 8-bit"):
            counted.check(rung)


# --- by another library -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        {"quant_method": "nobody-knows"},
        {"bits": 4},
        {},
        *([] if UNPACKS_FP8 else [{"quant_method": "fp8", "weight_block_size": [128, 128]}]),
    ],
)
def test_files_that_nobody_can_train_on_are_refused_before_a_weight_is_read(
    make: Make, tiny_model: Path, tmp_path: Path, stored: dict[str, Any]
) -> None:
    folder = tmp_path / "models" / "tiny"
    shutil.copytree(tiny_model, folder)
    say_quantized(folder, stored)
    # Whoever opened this would find it damaged, and say that instead.
    (folder / "model.safetensors").write_bytes(b"no weights")

    error, events = failing_load(make(), tmp_path / "models")

    assert isinstance(error, ConfigError)
    assert error.code == "base-quantized"
    assert f"({stored.get('quant_method', 'by what, config.json does not say')})" in error.message
    assert "Name the unquantized model" in (error.hint or "")
    assert failed_rungs(events) == []
    assert events[-1] == PhaseStarted(phase="config", at=events[-1].at)


def held_as_promised(root: Path, name: str, receipt: Any) -> None:
    """Nothing in the files' own format is left, and the estimate knew what it becomes."""
    assert (receipt.rung, receipt.quantized_modules, receipt.unquantized) == ("none", 0, ())
    source = BaseModel(name, root / name, None)
    config = load_model_config(source, None).config
    dtype = getattr(torch, receipt.compute_dtype)
    # A GPU that can would else compute with them as they are.
    asked: Any = ask_for_rung("none", config, Quantization(), dtype)
    assert asked.dequantize
    estimate = estimate_weights(source, config, "none", Quantization(), dtype)
    assert estimate.total_parameters == receipt.total_parameters
    assert estimate.model_bytes == pytest.approx(receipt.model_bytes, rel=0.02)


BLOCK = 128


def to_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight in blocks of 128 by 128, and the scale of each."""
    rows, columns = (size // BLOCK for size in weight.shape)
    blocks = weight.float().reshape(rows, BLOCK, columns, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    return (blocks / scales).reshape(weight.shape).to(torch.float8_e4m3fn), scales.reshape(rows, columns)


def follow_recipe(spec: RunSpec, loaded: LoadedModel, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the base model as the card says, beside its folder, and find what was trained on."""
    recipe, _ = re.findall(
        r"```python\n(.*?)```", render_recipe(spec.project, loaded.receipt, as_chat=False), re.DOTALL
    )
    names: dict[str, Any] = {}
    monkeypatch.chdir(root)
    exec(recipe.partition("model = ")[0], names)  # noqa: S102  # our own card
    settings, dtype = spec.project.quantization, getattr(torch, loaded.receipt.compute_dtype)
    asked = ask_for_rung("none", load_model_config(loaded.source, None).config, settings, dtype)
    assert asked is not None
    assert names["quantization"].to_dict() == asked.to_dict()
    held = dict(loaded.model.named_parameters())
    for name, weight in names["base"].named_parameters():
        assert torch.equal(weight, held[name])


@pytest.mark.skipif(not UNPACKS_FP8, reason="transformers 4.57 cannot turn FP8 files into floating point")
def test_fp8_files_are_turned_into_floating_point(
    make: Make, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "models"
    shutil.copytree(tiny_model, root / "tiny")
    stored = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    say_quantized(root / "tiny", stored)
    plain = load_file(root / "tiny" / "model.safetensors")
    packed = {}
    for name, weight in plain.items():
        if "_proj" in name:
            packed[name], packed[f"{name}_scale_inv"] = to_fp8(weight)
        else:
            packed[name] = weight
    save_file(packed, root / "tiny" / "model.safetensors", metadata={"format": "pt"})

    with protected_load(make(), models_root=root, emit=lambda _: None) as loaded:
        held_as_promised(root, "tiny", loaded.receipt)
        assert loaded.receipt.stored_quantization == "fp8"
        for name, weight in loaded.model.named_parameters():
            assert str(weight.dtype) == f"torch.{loaded.receipt.compute_dtype}"
            # Three bits of mantissa.
            assert float((weight - plain[name]).abs().max()) <= float(plain[name].abs().max()) / 16
        follow_recipe(make(), loaded, root, monkeypatch)

    error, _ = failing_load(make(quantization={"ladder": ["4bit"]}), root)
    assert isinstance(error, LadderError)
    assert (error.hint or "").startswith("Add 'none' to quantization.ladder")


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_mxfp4_files_are_turned_into_floating_point(
    make: Make, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, experts, width = tmp_path / "models", 2, 64
    config = GptOssConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        num_local_experts=experts,
        num_experts_per_tok=1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model: Any = GptOssForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(root / "oss")
    copy_tokenizer(tiny_model, root / "oss")
    tensors, expected = load_file(root / "oss" / "model.safetensors"), {}
    for name, rows in (("gate_up_proj", 2 * width), ("down_proj", width)):
        key = f"model.layers.0.mlp.experts.{name}"
        del tensors[key]
        blocks = torch.randint(256, (experts, rows, width // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 124, (experts, rows, width // 32), dtype=torch.uint8)
        tensors |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
        pairs = torch.stack([FP4[blocks.int() & 15], FP4[blocks.int() >> 4]], dim=-1).flatten(-2)
        values = pairs * torch.exp2(scales.float() - 127).unsqueeze(-1)
        expected[key] = values.flatten(-2).transpose(1, 2)
    save_file(tensors, root / "oss" / "model.safetensors", metadata={"format": "pt"})
    say_quantized(root / "oss", {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})

    with protected_load(make(base_model="oss"), models_root=root, emit=lambda _: None) as loaded:
        held_as_promised(root, "oss", loaded.receipt)
        for key, values in expected.items():
            weight: Any = loaded.model.get_parameter(key)
            assert torch.equal(weight.float(), values)
        follow_recipe(make(base_model="oss"), loaded, root, monkeypatch)
