"""A real training that takes a fraction of a second, for what does not depend on the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from runner.spec import RunSpec
from runner.training.data.mix import mix_data
from runner.training.loop.best_checkpoint import Evaluations
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import AdapterTrainer, build_trainer


@pytest.fixture
def train_smallest(
    make_spec: Callable[..., RunSpec], tiny_model: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> Callable[..., AdapterTrainer]:
    """Train the smallest Llama that has the demo's tokenizer, as the pipeline does, on 9 rows with 3 held out.

    Called with settings of `[training]`.
    """

    def run(**training: Any) -> AdapterTrainer:
        settings = {"max_steps": 10, "logging_steps": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 3}
        spec = make_spec(
            tmp_path, addition[:12], training=settings | training, evaluation={"held_out_percentage": 25.0}
        )
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        trainer = build_trainer(
            add_lora(LlamaForCausalLM(config), spec.project.lora, seed=1),
            tokenizer,
            mix_data(spec, tokenizer, tmp_path),
            spec.project.training,
            output_dir=tmp_path / "checkpoints",
            compute_dtype="float32",
            callbacks=[Evaluations(lambda _: None, spec.project.training)],
        )
        trainer.train_from(None)
        return trainer

    return run
