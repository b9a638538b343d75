"""Decides the model type and builds the Config object, before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig

from runner.errors import ConfigError
from runner.events import ConfigLoaded
from runner.redaction import redact
from runner.training.base_model import BaseModel

ALIASES = {"code_llama": "llama", "codellama": "llama"}
"""Names that people use for a model type which transformers knows by another one."""


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A Config object, and what there is to tell about it."""

    config: PretrainedConfig
    event: ConfigLoaded


def load_model_config(base: BaseModel, asked: str | None) -> LoadedConfig:
    """Build the Config object by config.json, or by the project's `model_type` where that file names none.

    Args:
        base: The base model; only its config.json is read.
        asked: The project's `model_type`.

    Raises:
        ConfigError: `model-type-mismatch` when file and project contradict each other, `config-unreadable` when the
            file cannot be read or the installed transformers does not know the type.
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
    config = _build(base, values, model_type)
    architectures = config.architectures or []
    event = ConfigLoaded(
        model_type=model_type,
        source="config.json" if stated else "project",
        config_class=type(config).__name__,
        architecture=architectures[0] if architectures else None,
        revision=base.revision,
    )
    return LoadedConfig(config, event)


def resolve_model_type(name: str) -> str:
    """Turn a model type as people write it into transformers' own name."""
    if name in CONFIG_MAPPING and name not in ALIASES:
        return name
    normalised = name.strip().lower().replace("-", "_")
    return ALIASES.get(normalised, normalised)


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
    config.name_or_path = str(base.folder)
    return config
