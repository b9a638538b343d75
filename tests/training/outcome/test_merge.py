"""Adapters merged for real, in processes of their own, and loaded with transformers alone."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from runner.__main__ import main
from runner.errors import MemoryExhaustedError, ModelFilesError, TrainingError, UsageError
from runner.hyperparameters import Lora
from runner.merging import PROBE, MergeReport
from runner.merging import merge as merge_and_publish
from runner.settings import load_settings
from runner.training.loop.lora import add_lora, without_peft_noise
from runner.training.outcome import merge as merging
from runner.training.outcome.merge import merge
from runner.training.outcome.verify import probe_logits
from tests.training.model_folders import copy_tokenizer

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]

TEXT = torch.tensor([[1, 40, 50, 60, 70, 80, 90, 100, 110]])


@pytest.fixture(scope="module")
def merged(
    finished_child: Any, models_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, MergeReport, list[str]]:
    """The folder and report of a job merged by its id, trained on 4 bits with `lm_head` saved whole; its files."""
    job = tmp_path_factory.mktemp("outputs") / "team" / "test-kfmsw"
    shutil.copytree(finished_child.run_dir / "adapter", job / "adapter")
    (job / "attempt-1").mkdir()
    shutil.copy(finished_child.run_dir / PROBE, job / "attempt-1")
    with pytest.MonkeyPatch.context() as host, redirect_stdout(io.StringIO()) as told:
        host.setenv("QLORA_OUTPUT_ROOT", str(job.parents[1]))
        host.setenv("QLORA_MODELS_ROOT", str(models_root))
        assert main(["merge", job.name, "--json"]) == 0
    report = MergeReport.model_validate_json(told.getvalue())
    return job / "merged", report, sorted(path.name for path in job.iterdir())


def test_a_plain_load_answers_as_the_adapter_on_the_16_bit_base(
    merged: tuple[Path, MergeReport, list[str]], finished_child: Any, tiny_model: Path
) -> None:
    output, report, _ = merged
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    plain = probe_logits(base, TEXT)
    with without_peft_noise(base):
        adapted = probe_logits(PeftModel.from_pretrained(base, str(finished_child.run_dir / "adapter")), TEXT)

    loaded = AutoModelForCausalLM.from_pretrained(output, dtype="auto")

    assert loaded.dtype == torch.bfloat16
    difference = (probe_logits(loaded, TEXT) - adapted).abs().max().item()
    assert difference < 0.1 * (adapted - plain).abs().max().item()
    assert report.rounding_difference < 0.1 * report.adapter_difference


def test_the_folder_is_a_model_of_its_own(
    merged: tuple[Path, MergeReport, list[str]], finished_child: Any, tiny_model: Path
) -> None:
    output, _, beside = merged
    config = json.loads((output / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(output)

    assert {"quantization_config", "_name_or_path"} & config.keys() == set()
    assert not list(output.glob("adapter_*"))
    assert tokenizer("What is 3 + 4?") == AutoTokenizer.from_pretrained(tiny_model)("What is 3 + 4?")
    assert (output / "ADAPTER.md").read_text() == (finished_child.run_dir / "adapter" / "README.md").read_text()
    assert (output / "manifest.json").is_file()
    assert beside == ["adapter", "attempt-1", "merged"]


def test_report_and_card_say_how_far_it_is_from_what_was_trained(
    merged: tuple[Path, MergeReport, list[str]],
) -> None:
    output, report, _ = merged
    card = (output / "README.md").read_text()

    assert report.rung == "4bit"
    # 16-bit weights under an adapter that was trained on 4-bit ones: not the same, and far from the untrained model.
    assert report.trained_difference is not None
    assert report.rounding_difference < report.trained_difference < report.adapter_difference
    assert "trained on that model with 4-bit quantization" in card
    assert f"{report.trained_difference:.4g}" in card
    assert f"at {report.same_tokens} of them" in card


@pytest.fixture
def make_adapter(finished_child: Any, tmp_path: Path) -> Callable[..., Path]:
    """A models root with a base model, and beside it an adapter of random numbers with a manifest."""

    def make(*, tied: bool, modules_to_save: tuple[str, ...] = ()) -> Path:
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path / "models" / "base")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "base", dtype=torch.bfloat16)
        made = finished_child.run_dir / "adapter"
        copy_tokenizer(made, tmp_path / "models" / "base")
        adapter = Path(shutil.copytree(made, tmp_path / "job" / "adapter"))
        model = add_lora(base, Lora(modules_to_save=modules_to_save), seed=1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn_like(parameter) * 0.1
        model.save_pretrained(str(adapter))
        manifest = json.loads((adapter / "manifest.json").read_text())
        manifest["spec"]["project"]["base_model"] = "base"
        (adapter / "manifest.json").write_text(json.dumps(manifest))
        return adapter

    return make


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("saved", [(), ("lm_head",)], ids=["nothing saved whole", "lm_head saved whole"])
def test_tied_embeddings_stay_tied_unless_one_of_them_was_trained(
    make_adapter: Callable[..., Path], tmp_path: Path, saved: list[str] | None
) -> None:
    adapter = make_adapter(tied=True, modules_to_save=saved)

    report = merge(adapter, tmp_path / "merged", probe=None, models_root=tmp_path / "models")

    with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as tensors:
        assert ("lm_head.weight" in tensors.keys()) == bool(saved)  # noqa: SIM118 - no mapping
    assert report.untied == bool(saved)
    assert report.trained_difference is None
    assert report.rounding_difference < 0.2 * report.adapter_difference


def test_a_base_model_of_quantized_files_is_refused(make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    adapter = make_adapter(tied=False)
    path = tmp_path / "models" / "base" / "config.json"
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | quantized))

    with pytest.raises(ModelFilesError, match="16-bit weights only") as refused:
        merge(adapter, tmp_path / "merged", probe=None, models_root=tmp_path / "models")

    assert refused.value.code == "base-quantized"
    assert not (tmp_path / "merged").exists()


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tied=False)
    monkeypatch.setattr(merging, "free_bytes", lambda _: 1000)

    with pytest.raises(MemoryExhaustedError, match=r"in 16 bits needs 0\.0 GB"):
        merge(adapter, tmp_path / "merged", probe=None, models_root=tmp_path / "models")


def test_another_base_model_than_the_training_had_is_refused(
    finished_child: Any, tmp_path: Path, models_root: Path
) -> None:
    changed = shutil.copytree(models_root / "tiny", tmp_path / "models" / "tiny")
    weights = changed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\0\0")
    settings = replace(load_settings({}), models_root=tmp_path / "models")

    with pytest.raises(UsageError, match="another base model than this host has: base model tiny: "):
        merge_and_publish(finished_child.run_dir / "adapter", tmp_path / "merged", settings)


def test_nothing_is_written_over(finished_child: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()

    assert main(["merge", str(finished_child.run_dir), "--output", str(tmp_path / "mine")]) == 2

    assert "is there already" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_merging_process_that_dies_leaves_nothing(
    finished_child: Any, tmp_path: Path, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    settings = replace(load_settings({}), models_root=models_root)

    with pytest.raises(TrainingError, match="died with exit status 1"):
        merge_and_publish(finished_child.run_dir / "adapter", tmp_path / "out" / "merged", settings)

    assert list((tmp_path / "out").iterdir()) == []
