"""A config.json that transformers cannot read as it is: the whole way, and back by the card's own recipe."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.errors import ConfigError
from runner.events import ChildEvent, ConfigLoaded, RunSucceeded
from runner.spec import RunSpec
from runner.training.loading.protected_load import protected_load
from runner.training.outcome.verify import PROBE, probe_logits
from runner.training.pipeline import train

pytestmark = [
    pytest.mark.training,
    # peft 0.21 and the Trainer ask transformers 5.23 by old names.
    pytest.mark.filterwarnings("ignore:.(is_gradient_checkpointing|gradient_checkpointing_enable). is:FutureWarning"),
]

Make = Callable[..., RunSpec]


@pytest.fixture
def models(tmp_path: Path, tiny_model: Path) -> Path:
    """A models root with a copy of the demo's model, `tiny`, whose config.json a test rewrites."""
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny")
    return tmp_path / "models"


def rewrite(models: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = models / "tiny" / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def unname(values: dict[str, Any]) -> None:
    """What nobody but the project can make up for, and what transformers 4.57 fails at."""
    del values["model_type"]
    values["quantization_config"] = None


def load(spec: RunSpec, models: Path) -> tuple[Any, list[ChildEvent]]:
    events: list[ChildEvent] = []
    with protected_load(spec, models_root=models, emit=events.append) as loaded:
        return loaded, events


def test_a_model_without_a_model_type_is_trained_verified_and_loaded_by_its_card(
    make_spec: Make, models: Path, addition: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(models, unname)
    spec = make_spec(
        tmp_path / "projects",
        addition[::10],
        model_type="code_llama",
        quantization={"ladder": ["4bit"]},
        training={"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    )
    run_dir = tmp_path / "run"
    events: list[ChildEvent] = []

    end = train(spec, run_dir, events.append, models_root=models, projects_dir=tmp_path / "projects")

    assert isinstance(end, RunSucceeded)
    (config,) = [event for event in events if isinstance(event, ConfigLoaded)]
    assert (config.model_type, config.source) == ("llama", "project")

    # As somebody would who copies the recipe, beside the base model's folder.
    card = (run_dir / "adapter" / "README.md").read_text()
    recipe, _ = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "model_type, quantization_config must be left out" in recipe
    monkeypatch.chdir(models)
    names: dict[str, Any] = {}
    exec(recipe.replace("this/folder", str(run_dir / "adapter")), names)  # noqa: S102  (our own card)
    probe = load_file(run_dir / PROBE)
    for module in names["model"].modules():
        # As while training: the inference kernel of bitsandbytes for CPUs rounds in another way.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    difference = (probe_logits(names["model"], probe["input_ids"]) - probe["logits"]).abs().max()
    assert difference < 0.02 * probe["logits"].abs().max()


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        (lambda values: values.update(model_type="qwen2", architectures=["Qwen2ForCausalLM"]), "llama"),
        (lambda values: values.update(model_type="llama", architectures=["Qwen2ForCausalLM"]), None),
        (lambda values: values.pop("model_type"), "qwen2"),
    ],
    ids=["project-against-file", "file-against-itself", "project-against-architecture"],
)
def test_a_contradiction_is_refused_before_a_weight_is_read(
    make_spec: Make, models: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], asked: str | None
) -> None:
    rewrite(models, change)
    # Whoever opened this would find it damaged, and say that instead.
    (models / "tiny" / "model.safetensors").write_bytes(b"no weights")
    spec = make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}], model_type=asked)

    with pytest.raises(ConfigError) as raised:
        load(spec, models)

    assert raised.value.code == "model-type-mismatch"
    assert "'qwen2'" in raised.value.message
    assert "'llama'" in raised.value.message


def test_a_null_quantization_config_loads_on_every_rung(make_spec: Make, models: Path, tmp_path: Path) -> None:
    rewrite(models, lambda values: values.update(quantization_config=None))
    for rung in ("4bit", "8bit", "none"):
        spec = make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}], quantization={"ladder": [rung]})
        loaded, _ = load(spec, models)
        assert loaded.receipt.rung == rung
        assert loaded.receipt.config_left_out == ("quantization_config",)


def test_a_text_config_that_its_class_leaves_a_dict_is_an_object(make_spec: Make, models: Path, tmp_path: Path) -> None:
    rewrite(models, lambda values: values.update(text_config=values | {"model_type": "llama"}))
    loaded, _ = load(make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}]), models)
    assert loaded.config.get_text_config().vocab_size == loaded.config.vocab_size
    assert loaded.receipt.guard_interceptions == 0
    assert torch.isfinite(torch.tensor(loaded.receipt.probe_loss))
