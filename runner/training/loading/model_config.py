"""Decides the model type and builds the Config object, before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from runner.errors import ConfigError
from runner.events import ConfigLoaded
from runner.redaction import redact
from runner.training.loading.base_model import BaseModel
from runner.training.loading.config_guard import USUAL_SUB_CONFIGS, sub_config_from
from runner.training.loading.quantization_config import refuse_foreign_format

ALIASES = {
    "code_llama": "llama",
    "deepseek_coder": "llama",
    "llama2": "llama",
    "llama3": "llama",
    "smollm": "llama",
    "smollm2": "llama",
    "tinyllama": "llama",
    "vicuna": "llama",
    "yi": "llama",
    "mistral_nemo": "mistral",
    "zephyr": "mistral",
    "qwen1_5": "qwen2",
    "qwen2_5": "qwen2",
    "qwq": "qwen2",
    "codegemma": "gemma",
    "phi2": "phi",
    "phi3_5": "phi3",
    "phi4": "phi3",
    "dolly": "gpt_neox",
    "pythia": "gpt_neox",
    "starcoder": "gpt_bigcode",
}
"""Names that people use for a model type which transformers knows by another one; told in docs/MODEL_TYPES.md."""

# People write `Phi-4` and `phi4`, `code_llama` and `CodeLlama`.
_BY_LETTERS = {alias.replace("_", ""): model_type for alias, model_type in ALIASES.items()}


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A Config object, and what there is to tell about it."""

    config: PretrainedConfig
    event: ConfigLoaded
    left_out: tuple[str, ...]
    """Keys of config.json that transformers cannot read as they stand; whoever loads the model leaves them out."""


def load_model_config(base: BaseModel, asked: str | None) -> LoadedConfig:
    """Build the Config object by config.json, or by the project's `model_type` where that file names none.

    Args:
        base: The base model; only its config.json is read.
        asked: The project's `model_type`.

    Raises:
        ConfigError: `model-type-mismatch` when file and project contradict each other or the file itself,
            `config-unreadable` when the file cannot be read or the installed transformers does not know the type,
            `base-quantized` when the weights are in a quantized format that cannot be trained on.
    """
    values = base.read_config()
    stated = values.get("model_type")
    stated = stated if isinstance(stated, str) and stated else None
    if stated and asked and resolve_model_type(stated) != resolve_model_type(asked):
        raise ConfigError(
            f"The project says model_type = {asked!r}, but {base.folder / 'config.json'} says {stated!r}.",
            hint=f"Drop model_type or set it to {stated!r}, or choose another base_model.",
            code="model-type-mismatch",
        )
    named = stated or asked
    if named is None:
        raise ConfigError(
            f"{base.folder / 'config.json'} names no model_type, and the project does not either.",
            hint="Set model_type in the project, such as 'llama'.",
        )
    model_type = resolve_model_type(named)
    _refuse_other_architecture(base, values, model_type, named)
    config = _build(base, values, model_type)
    refuse_foreign_format(config, base.name)
    architectures = config.architectures or []
    event = ConfigLoaded(
        model_type=model_type,
        source="config.json" if stated else "project",
        config_class=type(config).__name__,
        architecture=architectures[0] if architectures else None,
        revision=base.revision,
    )
    left_out = [] if stated == model_type else ["model_type"]
    if values.get("quantization_config", ...) is None:
        left_out.append("quantization_config")
    return LoadedConfig(config, event, tuple(left_out))


def resolve_model_type(name: str) -> str:
    """Turn a model type as people write it into transformers' own name."""
    if name in CONFIG_MAPPING and name not in ALIASES:
        return name
    normalised = re.sub(r"[-. ]", "_", name.strip().lower())
    if normalised in CONFIG_MAPPING and normalised not in ALIASES:
        return normalised
    return _BY_LETTERS.get(normalised.replace("_", ""), normalised)


def _refuse_other_architecture(base: BaseModel, values: dict[str, Any], model_type: str, named: str) -> None:
    """Refuse a model type whose weights would be read into another architecture than the one they were saved from.

    Classes that generate no text, and names that transformers does not know, tell nothing.
    """
    own = _class_names(model_type)
    stated = values.get("architectures")
    for architecture in stated if isinstance(stated, list) else []:
        types = [other for other in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if architecture in _class_names(other)]
        if own and types and architecture not in own:
            raise ConfigError(
                f"{base.folder / 'config.json'} says architectures = [{architecture!r}], which is of model type "
                f"{' or '.join(map(repr, types))}, but {named!r} is the model type.",
                hint="Correct model_type in the project, or fetch the model's config.json again.",
                code="model-type-mismatch",
            )


def _class_names(model_type: str) -> tuple[str, ...]:
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ())
    return (names,) if isinstance(names, str) else tuple(names)


def _build(base: BaseModel, values: dict[str, Any], model_type: str) -> PretrainedConfig:
    if model_type not in CONFIG_MAPPING:
        remote = " It brings code of its own, which is never run." if "auto_map" in values else ""
        raise ConfigError(
            f"transformers {transformers.__version__} does not know the model type {model_type!r} of "
            f"{base.name!r}.{remote}",
            hint="Choose another base_model, or a worker whose transformers knows it (python -m runner versions).",
        )
    # Where the class is known by model type, its name in the file no longer matters: an alias would only warn.
    entries = {key: value for key, value in values.items() if key != "model_type"}
    # transformers 4.57 calls .to_dict() on a quantization_config that the file sets to null.
    if entries.get("quantization_config", ...) is None:
        del entries["quantization_config"]
    try:
        config: PretrainedConfig = CONFIG_MAPPING[model_type].from_dict(entries)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError(
            f"{base.folder / 'config.json'} is no valid configuration of a {model_type!r} model: {redact(reason)}",
            hint="Fetch the model's config.json again.",
        ) from error
    for name in USUAL_SUB_CONFIGS:
        # A class that does not know this part keeps what the file holds, and every reader asks it for attributes.
        part = config.__dict__.get(name)
        if isinstance(part, Mapping):
            setattr(config, name, sub_config_from(config, name, part))
    config.name_or_path = str(base.folder)
    return config
