"""One seed, one model, the same rows: our loss curve is that of a plain TRL script."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plain_trl  # type: ignore[import-not-found]  # beside this file; conftest puts the folder on the path
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from runner.events import ChildEvent
from runner.spec import RunSpec
from runner.training.data.mix import mix_data
from runner.training.loading.protected_load import protected_load
from runner.training.loop.lora import add_lora
from runner.training.loop.loss import AS_TRL_1
from runner.training.loop.trainer import build_trainer
from tests.training.model_folders import copy_tokenizer

MakeSpec = Callable[..., RunSpec]
STEPS = 6
TRAINING = {"max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "seed": 7}
LORA = {"r": 8, "lora_alpha": 32, "target_modules": "all-linear"}
WORDS = ("what is the sum", "who are you", "say it again", "where is the adapter", "one short sentence", "thank you")
ROWS = [
    {"prompt": " ".join(WORDS[: 1 + n % 4]) + "?", "completion": " " + " ".join(WORDS[n % 6 : n % 6 + 1 + n % 3])}
    for n in range(60)
]
"""Prompts and answers of many lengths, so that batches are padded and the tokens in them differ."""


SECTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "accumulation, dropout and a trained lm_head": {
        "training": {
            "gradient_accumulation_steps": 3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 2,
            "weight_decay": 0.1,
        },
        "lora": {
            "target_modules": ["q_proj", "down_proj"],
            "modules_to_save": ["lm_head"],
            "lora_dropout": 0.2,
        },
    },
    "NEFTune and checkpointing": {"training": {"neftune_noise_alpha": 5.0, "gradient_checkpointing": True}},
}
"""What a project may set, by name."""


def _ignore(_event: ChildEvent) -> None:
    pass


def _ours(spec: RunSpec, models_root: Path, folder: Path) -> tuple[list[float], str]:
    training = spec.project.training
    with protected_load(spec, models_root=models_root, emit=_ignore) as loaded:
        trainer = build_trainer(
            add_lora(loaded.model, spec.project.lora, training.seed),
            loaded.tokenizer,
            mix_data(spec, loaded.tokenizer, folder),
            training,
            output_dir=folder / "checkpoints",
            compute_dtype=loaded.receipt.compute_dtype,
            callbacks=[],
        )
        trainer.train()
    return _losses(trainer), loaded.receipt.compute_dtype


def _losses(trainer: Any) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def _compare(spec: RunSpec, models_root: Path, folder: Path, training: dict[str, Any], lora: dict[str, Any]) -> None:
    """Train both and compare every step's loss."""
    ours, compute_dtype = _ours(spec, models_root, folder)
    (rung,) = spec.project.quantization.ladder
    trainer = plain_trl.build(
        models_root / spec.project.base_model,
        ROWS,
        load_in_4bit=rung == "4bit",
        load_in_8bit=rung == "8bit",
        dtype=getattr(torch, compute_dtype),
        arguments={"gradient_checkpointing": False} | training | {"output_dir": str(folder / "plain")},
        lora=lora,
        # TRL 1.16 rounds a quantized model's adapter to bfloat16, in which an update below 1/256 of a weight is lost;
        # we hold it in float32 (`loop.lora.keep_full_precision`), so the script undoes that one setting.
        full_precision_adapter=True,
    )
    trainer.train()

    assert len(ours) == STEPS
    assert ours == pytest.approx(_losses(trainer), rel=1e-4)
    # Weighed by its probability, a token's loss is low for the unlikely, too.
    assert ours[-1] < ours[0] or training.get("loss_type") == "dft"


# The plain script triggers warnings of its libraries that its author would live with.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("rung", "sections"),
    [
        *((rung, sections) for sections in SECTIONS.values() for rung in ("none", "4bit")),
        ("4bit", {"training": {"packing": True, "max_length": 64}}),
        ("none", {"training": {"packing": True, "max_length": 64, "packing_strategy": "wrapped"}}),
        ("none", {"training": {"loss_type": "dft"}}),
        pytest.param("8bit", {}, marks=pytest.mark.skipif(not AS_TRL_1, reason="steps differ by up to 7e-4 there")),
    ],
    ids=[
        *(f"{rung} with {name}" for name in SECTIONS for rung in ("none", "4bit")),
        "4bit with packing",
        "none with wrapped packing",
        "none with Dynamic Fine-Tuning",
        "8bit",
    ],
)
def test_the_loss_curve_is_that_of_a_plain_trl_script(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, rung: str, sections: dict[str, Any]
) -> None:
    training, lora = TRAINING | sections.get("training", {}), LORA | sections.get("lora", {})
    spec = make_spec(tmp_path, ROWS, training=training, lora=lora, quantization={"ladder": [rung]})

    _compare(spec, models_root, tmp_path, training, lora)


@pytest.mark.filterwarnings("ignore")
def test_a_model_whose_quantized_layers_have_biases_trains_as_in_a_plain_trl_script(
    make_spec: MakeSpec, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "qwen2"
    config = Qwen2Config.from_pretrained(tiny_model, architectures=["Qwen2ForCausalLM"], use_sliding_window=False)
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(config)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    for bias in biases:
        torch.nn.init.normal_(bias, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(tiny_model, folder)
    spec = make_spec(
        tmp_path, ROWS, base_model="qwen2", training=TRAINING, lora=LORA, quantization={"ladder": ["4bit"]}
    )

    assert biases
    _compare(spec, folder.parent, tmp_path, TRAINING, LORA)
