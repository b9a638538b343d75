import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from runner.errors import ConfigError
from runner.training.loading.base_model import BaseModel
from runner.training.loading.model_config import load_model_config, resolve_model_type

pytestmark = pytest.mark.training


def model_with(folder: Path, config: Any) -> BaseModel:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return BaseModel("a model", folder, None)


def test_the_demo_config_is_read_from_its_file(tiny_model: Path) -> None:
    loaded = load_model_config(BaseModel("tiny", tiny_model, "abc123"), None)
    assert isinstance(loaded.config, LlamaConfig)
    assert loaded.config.hidden_size == 256
    event = loaded.event
    assert (event.model_type, event.source, event.config_class) == ("llama", "config.json", "LlamaConfig")
    assert (event.architecture, event.revision) == ("LlamaForCausalLM", "abc123")


def test_the_project_decides_where_the_file_names_no_type(tmp_path: Path) -> None:
    loaded = load_model_config(model_with(tmp_path, {"hidden_size": 96}), "qwen2")
    assert (loaded.event.model_type, loaded.event.source) == ("qwen2", "project")
    assert loaded.config.hidden_size == 96
    assert loaded.event.architecture is None


@pytest.mark.parametrize("asked", ["llama", "Llama", "code_llama", "code-llama", "CodeLlama"])
def test_a_code_llama_is_a_llama(tmp_path: Path, asked: str) -> None:
    loaded = load_model_config(model_with(tmp_path, {"model_type": "llama"}), asked)
    assert (loaded.event.model_type, loaded.event.source) == ("llama", "config.json")


def test_a_file_that_says_code_llama_gives_a_llama_config(tmp_path: Path) -> None:
    loaded = load_model_config(model_with(tmp_path, {"model_type": "code_llama"}), "llama")
    assert type(loaded.config) is LlamaConfig
    assert loaded.event.model_type == "llama"


def test_a_type_whose_own_name_has_a_hyphen_keeps_it() -> None:
    assert resolve_model_type("gpt-sw3") == "gpt-sw3"


def test_a_contradiction_names_both_values(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_model_config(model_with(tmp_path, {"model_type": "qwen2"}), "llama")
    assert raised.value.code == "model-type-mismatch"
    assert "'llama'" in raised.value.message
    assert "'qwen2'" in raised.value.message
    assert str(tmp_path / "config.json") in raised.value.message


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [
        ({}, None, "names no model_type"),
        ({"model_type": "no-such-type"}, None, "does not know the model type 'no_such_type'"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "x.Y"}}, None, "code of its own, which is never run"),
        ("{", None, "is not valid JSON"),
        ([1], None, "holds no JSON object"),
        ({"model_type": "llama", "hidden_size": "wide"}, None, "is no valid configuration"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(tmp_path: Path, config: Any, asked: str | None, message: str) -> None:
    base = model_with(tmp_path, config)
    with pytest.raises(ConfigError, match=message) as raised:
        load_model_config(base, asked)
    assert raised.value.code == "config-unreadable"
    assert raised.value.hint


def test_a_missing_config_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json") as raised:
        load_model_config(BaseModel("a model", tmp_path, None), "llama")
    assert str(tmp_path) in raised.value.message


def test_a_null_quantization_config_counts_as_none(tmp_path: Path) -> None:
    config = load_model_config(model_with(tmp_path, {"model_type": "llama", "quantization_config": None}), None).config
    assert getattr(config, "quantization_config", None) is None
    assert config.to_dict()["model_type"] == "llama"
