"""Models that keep packed rows apart, and models that do not, really computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from runner.errors import TrainingError
from runner.spec import RunSpec
from runner.training.loading.packed_rows import require_rows_apart
from runner.training.pipeline import train
from tests.training.model_folders import copy_tokenizer

pytestmark = pytest.mark.training

Make = Callable[..., RunSpec]
SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it bare
    return model.requires_grad_(requires_grad=False).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_keeps_packed_rows_apart_is_left_as_it_was(dtype: torch.dtype) -> None:
    model = build(LlamaConfig(**SMALL, intermediate_size=64))
    state = torch.random.get_rng_state()

    require_rows_apart(model, dtype)

    assert not model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def opt(vocab_size: int) -> Any:
    small = SMALL | {"vocab_size": vocab_size}
    return build(OPTConfig(**small, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64))


def test_packing_is_refused_for_a_model_in_which_a_row_depends_on_the_one_before_it() -> None:
    with pytest.raises(TrainingError, match="OPTForCausalLM reads them as one text") as caught:
        require_rows_apart(opt(64), torch.bfloat16)

    assert caught.value.code == "packing"


@pytest.mark.parametrize(("strategy", "refused"), [("bfd", True), ("wrapped", False)])
def test_a_run_that_would_mix_rows_that_shall_stay_apart_does_not_train(
    make_spec: Make, tiny_model: Path, tmp_path: Path, strategy: str, refused: bool
) -> None:
    opt(512).save_pretrained(tmp_path / "models" / "tiny")
    copy_tokenizer(tiny_model, tmp_path / "models" / "tiny")
    spec = make_spec(
        tmp_path / "projects",
        [{"prompt": f"{number} + 1?", "completion": f"{number + 1}"} for number in range(8)],
        quantization={"ladder": ["none"]},
        lora={"target_modules": "all-linear"},
        training={"max_steps": 1, "packing": True, "packing_strategy": strategy, "max_length": 32},
    )
    kinds: list[str] = []

    def run() -> None:
        train(
            spec,
            tmp_path / "run",
            lambda event: kinds.append(event.kind),
            models_root=tmp_path / "models",
            projects_dir=tmp_path / "projects",
        )

    if refused:
        with pytest.raises(TrainingError, match="packing"):
            run()
    else:
        run()
    assert ("metrics_logged" in kinds) is not refused
