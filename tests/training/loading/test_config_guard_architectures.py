"""The whole way through the libraries, with a dict assigned at every station, for each architecture."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTuner
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from runner.training.loading.base_model import BaseModel
from runner.training.loading.config_guard import ConfigGuard
from runner.training.loading.empty_model import choose_model_class
from runner.training.loading.model_config import load_model_config, resolve_model_type

pytestmark = [
    pytest.mark.training,
    # peft 0.21 and the Trainer ask transformers 5.23 by old names.
    pytest.mark.filterwarnings("ignore:.(is_gradient_checkpointing|gradient_checkpointing_enable). is:FutureWarning"),
    # peft 0.21 looks for the fused experts of transformers 5 where `all-linear` does not reach.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
    # Recomputation has nothing to do where logits are asked for without gradients.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning"),
    # peft 0.18 goes by what a class could tie, whatever its config says.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
GROUPED = SIZES | {"num_key_value_heads": 1, "head_dim": 16}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
# model type as a project writes it -> settings of a model as small as its architecture allows
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "code_llama": GROUPED,
    "mistral": GROUPED,
    "mixtral": GROUPED | {"num_local_experts": 2},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": GROUPED,
    "gemma3": {"text_config": GROUPED, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 60}
    | {"boi_token_index": 61, "eoi_token_index": 62, "tie_word_embeddings": False},
    "phi3": GROUPED,
    "gpt_neox": SIZES,
    "falcon": SIZES | {"new_decoder_architecture": False, "alibi": False},
    "olmo2": GROUPED,
}
TOKENS = torch.tensor([[3, 5, 9, 11]])
PAGE = (Path(__file__).parents[3] / "docs" / "MODEL_TYPES.md").read_text(encoding="utf-8")


def random_model(model_type: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(resolve_model_type(model_type), **ARCHITECTURES[model_type])
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # left bare


def write_model(folder: Path, model_type: str) -> BaseModel:
    """Save a random model of an architecture, under the model type that the project uses."""
    random_model(model_type).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": model_type}))
    return BaseModel(model_type, folder, None)


def load(folder: Path, config: PretrainedConfig) -> Any:
    quantization: Any = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)  # type: ignore[no-untyped-call]
    return AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, quantization_config=quantization, device_map={"": "cpu"}
    )


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def logits(model: Any) -> torch.Tensor:
    # In training mode: bitsandbytes' inference kernel for CPUs would repack the weights.
    model.train()
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=TOKENS).logits
    return result


def models_within(model: Any) -> list[Any]:
    """Peft's wrappers, and every transformers model inside them."""
    return [module for module in model.modules() if isinstance(module, PeftModel | BaseTuner | PreTrainedModel)]


def parts(config: PretrainedConfig) -> list[tuple[str, Any]]:
    return [(name, getattr(config, name)) for name in ("text_config", "vision_config") if hasattr(config, name)]


def turn_into_dicts(models: Iterable[Any]) -> None:
    for model in models:
        model.config = model.config.to_dict()


def hook(patch: pytest.MonkeyPatch, cls: type, method: str, models: Callable[[Any], Iterable[Any]]) -> None:
    """Let a method of a library turn configs into dicts at its end."""
    original = getattr(cls, method)

    def hooked(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        turn_into_dicts(models(self))
        return result

    patch.setattr(cls, method, hooked)


class Logging(TrainerCallback):
    """What people write to log a config, at every layer that has one, its parts included."""

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        models = models_within(kwargs["model"])
        turn_into_dicts(models)
        for name, part in parts(models[0].config):
            setattr(models[0].config, name, part.to_dict())

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        self.on_step_end(**kwargs)


def train(model: Any, folder: Path) -> Trainer:
    rows: Any = [{"input_ids": TOKENS[0], "labels": TOKENS[0]}] * 4
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[Logging()])
    trainer.train()
    return trainer


def test_the_page_names_the_architectures_that_are_proven() -> None:
    (proven,) = re.findall(r"The config guard is proven on (.*?) \(", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", proven)) == set(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 12


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_dicts_assigned_at_every_station_of_a_run_change_nothing(model_type: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "base", model_type)
    config = load_model_config(source, model_type).config
    seen = []
    with ConfigGuard(choose_model_class(config, source)) as guard, pytest.MonkeyPatch.context() as patch:
        hook(patch, PreTrainedModel, "post_init", lambda model: [model])
        hook(patch, PreTrainedModel, "enable_input_require_grads", lambda model: [model])
        hook(patch, BaseTuner, "inject_adapter", lambda tuner: [tuner, tuner.model])
        base = load(tmp_path / "base", config)
        kept = base.config
        seen.append(guard.interceptions)
        prepare: Any = prepare_model_for_kbit_training
        prepare(base, gradient_checkpointing_kwargs={"use_reentrant": True})
        seen.append(guard.interceptions)
        model = get_peft_model(base, lora())
        seen.append(guard.interceptions)
        trainer = train(model, tmp_path)
        seen.append(guard.interceptions)
        turn_into_dicts(models_within(model))
        model.save_pretrained(str(tmp_path / "adapter"))
    assert seen == sorted(set(seen)), "each station was intercepted"
    assert seen[0] > 0
    assert guard.interceptions > seen[-1]
    assert type(kept) is type(config)
    assert [one.config is kept for one in models_within(model)[:3]] == [True] * 3
    assert {isinstance(one.config, PretrainedConfig) for one in models_within(model)} == {True}
    assert {name: type(part) for name, part in parts(kept)} == {name: type(part) for name, part in parts(config)}
    assert trainer.state.global_step == 2
    again = PeftModel.from_pretrained(load(tmp_path / "base", config), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_without_the_guard_the_first_forward_of_each_architecture_dies(model_type: str) -> None:
    model = random_model(model_type)
    model.config = model.config.to_dict()
    wrapped = get_peft_model(model, lora())
    with pytest.raises(AttributeError, match="'dict' object has no attribute"):
        wrapped(input_ids=TOKENS)
