"""What a training step takes by arithmetic, against what it takes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
)
from trl.trainer import utils as trl_utils

from runner.spec import ProjectSpec, RunSpec
from runner.training.data.mix import Mix, mix_data
from runner.training.loading.base_model import BaseModel
from runner.training.loading.tokenizer import load_tokenizer
from runner.training.loop.lora import add_lora
from runner.training.loop.memory_advice import one_row_does_not_fit
from runner.training.loop.trainer import build_trainer
from runner.training.loop.training_estimate import TrainingEstimate, longest_batch
from runner.training.memory import MemoryMeter, release_memory
from tests.training.alone import passed_alone

pytestmark = [pytest.mark.training, pytest.mark.timeout(400)]

MakeSpec = Callable[..., RunSpec]
CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def source(tiny_model: Path) -> BaseModel:
    return BaseModel("tiny", tiny_model, None)


@pytest.fixture
def wide(make_spec: MakeSpec, tmp_path: Path, source: BaseModel) -> tuple[ProjectSpec, Mix]:
    """Batches of 8 rows, the longest of 128 tokens, nearly all with loss; one of them alone is that long."""
    rows = [{"prompt": "a", "completion": "b" * (300 if number == 17 else 120)} for number in range(32)]
    spec = make_spec(
        tmp_path / "wide",
        rows,
        training={"per_device_train_batch_size": 8, "max_steps": 1, "max_length": 128, "optim": "adamw_torch_fused"},
    )
    return spec.project, mix_data(spec, load_tokenizer(source).tokenizer, tmp_path / "wide")


def estimated(config: PretrainedConfig, source: BaseModel, project: ProjectSpec, mix: Mix, **changed: Any) -> int:
    estimate = TrainingEstimate(source, config, project, mix, compute_dtype=torch.bfloat16, device=CPU)
    found = estimate.bytes_of("none", project.training.model_copy(update=changed))
    assert found is not None
    return found


def train(config: PretrainedConfig, source: BaseModel, project: ProjectSpec, mix: Mix, folder: Path) -> int:
    """Train a random model for one step; the most memory that it took."""
    base: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model = add_lora(base, project.lora, 0)
    release_memory()
    with MemoryMeter(CPU) as meter:
        trainer = build_trainer(
            model,
            load_tokenizer(source).tokenizer,
            mix,
            project.training,
            output_dir=folder,
            compute_dtype="bfloat16",
            callbacks=[],
        )
        trainer.train()
    assert meter.peak_bytes is not None
    return meter.peak_bytes


@pytest.fixture
def heap_without_holes() -> Iterator[None]:
    """Let glibc give every large tensor pages of its own, which go back when it is gone; its heap keeps holes."""
    mallopt, threshold = ctypes.CDLL(None).mallopt, -3
    mallopt(threshold, 1 << 17)
    yield
    mallopt(threshold, 1 << 25)  # where its own adjusting ends


def llama() -> PretrainedConfig:
    return LlamaConfig(**SIZES, vocab_size=8_000)


def keeps_own_loss() -> PretrainedConfig:
    if hasattr(trl_utils, "add_fused_lm_head"):
        return MixtralConfig(**SIZES, vocab_size=8_000, num_local_experts=2, output_router_logits=True)
    # transformers 4.57 names its backbone wrongly.
    return Gemma3TextConfig(**SIZES, vocab_size=8_000, head_dim=64)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.usefixtures("heap_without_holes")
@pytest.mark.parametrize("make_config", [llama, keeps_own_loss])
def test_the_estimate_of_a_larger_batch_is_near_what_real_steps_take(
    request: pytest.FixtureRequest,
    make_config: Callable[[], PretrainedConfig],
    wide: tuple[ProjectSpec, Mix],
    source: BaseModel,
    tmp_path: Path,
) -> None:
    if passed_alone(request):
        return
    project, mix = wide
    config = make_config()

    def both(rows: int) -> tuple[int, int]:
        training = project.training.model_copy(update={"per_device_train_batch_size": rows})
        taken = train(config, source, project.model_copy(update={"training": training}), mix, tmp_path / str(rows))
        return taken, estimated(config, source, project, mix, per_device_train_batch_size=rows)

    # The difference, because what a process imports and compiles for its first training is not what is asked for.
    both(2)
    few, many = both(8), both(32)

    assert many[1] - few[1] == pytest.approx(many[0] - few[0], rel=0.2)


def test_a_large_vocabulary_costs_a_block_of_logits_and_not_those_of_the_whole_batch(
    wide: tuple[ProjectSpec, Mix], source: BaseModel
) -> None:
    def with_vocabulary(size: int) -> int:
        config = LlamaConfig(**SIZES, vocab_size=size)
        return estimated(config, source, *wide, per_device_train_batch_size=32)

    # 4,096 tokens with 96,000 logits in float32 would be 1.6 GB.
    assert 0 < with_vocabulary(128_000) - with_vocabulary(32_000) < 7e8


def test_checkpointing_and_smaller_batches_take_less(wide: tuple[ProjectSpec, Mix], source: BaseModel) -> None:
    config = LlamaConfig(**SIZES, vocab_size=256)
    whole = estimated(config, source, *wide)

    assert estimated(config, source, *wide, gradient_checkpointing=True) < whole
    assert estimated(config, source, *wide, per_device_train_batch_size=2) < whole / 2


def test_a_configuration_that_works_out_its_kinds_of_layers_is_estimated(
    wide: tuple[ProjectSpec, Mix], source: BaseModel
) -> None:
    config = RecurrentGemmaConfig(**SIZES, vocab_size=512, lru_width=256)

    assert estimated(config, source, *wide) > estimated(config, source, *wide, per_device_train_batch_size=4)


def test_the_longest_batch_holds_the_one_long_row(wide: tuple[ProjectSpec, Mix]) -> None:
    project, mix = wide
    batch = longest_batch(project.training, mix)

    assert (batch.rows, batch.tokens) == (8, max(map(len, mix.input_ids)))


def test_where_a_step_has_failed_the_advice_is_less_than_it_takes_whatever_was_free(
    wide: tuple[ProjectSpec, Mix], source: BaseModel
) -> None:
    project, mix = wide
    one_row: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_checkpointing": True}
    whole = estimated(llama(), source, project, mix, **one_row)
    tried = project.model_copy(update={"training": project.training.model_copy(update=one_row)})
    estimate = TrainingEstimate(source, llama(), project, mix, compute_dtype=torch.bfloat16, device=CPU)

    plenty = one_row_does_not_fit(estimate, tried, mix, "none", room=2 * whole)
    scarce = one_row_does_not_fit(estimate, tried, mix, "none", room=whole // 4)

    advised = re.search(r"training\.max_length = (\d+) ", str(plenty.hint))
    assert advised is not None
    assert estimated(llama(), source, project, mix, max_length=int(advised[1]), **one_row) < 0.95 * whole
    # A smaller adapter helps where not much is missing.
    assert f"lora.r = {project.lora.r // 2} (at most " in str(plenty.hint)
    assert "lora.r = " not in str(scarce.hint)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.skipif(hasattr(trl_utils, "add_fused_lm_head"), reason="transformers 5 deals tokens out without numbers")
def test_code_that_asks_for_numbers_gives_no_estimate(wide: tuple[ProjectSpec, Mix], source: BaseModel) -> None:
    config = MixtralConfig(**SIZES, vocab_size=512, num_local_experts=2)
    estimate = TrainingEstimate(source, config, *wide, compute_dtype=torch.bfloat16, device=CPU)

    assert estimate.bytes_of("none") is None


def test_code_that_fails_without_data_gives_no_estimate_and_says_why_in_the_log(
    wide: tuple[ProjectSpec, Mix], source: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    # It divides by the number of its layers less one, and a step is tried with one layer.
    config = RwkvConfig(hidden_size=64, attention_hidden_size=64, num_hidden_layers=2, vocab_size=512)
    estimate = TrainingEstimate(source, config, *wide, compute_dtype=torch.bfloat16, device=CPU)

    assert estimate.bytes_of("none") is None
    assert "ZeroDivisionError" in caplog.text
