"""A base model's class and modules without its weights: what can be known before a tensor is read."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from runner.errors import ConfigError
from runner.training.loading.base_model import BaseModel
from runner.training.loading.config_guard import ConfigGuard


def choose_model_class(config: PretrainedConfig, source: BaseModel) -> type[PreTrainedModel]:
    """Name the class that AutoModelForCausalLM will build, so that it can be guarded before it does.

    Raises:
        ConfigError: The model type generates no text.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"The base model {source.name!r} is of model type {config.model_type!r}, which generates no text.",
            hint="Choose a causal language model as base_model.",
        )
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    candidates: list[type[PreTrainedModel]] = list(known) if isinstance(known, list | tuple) else [known]
    named = [candidate for candidate in candidates if candidate.__name__ in (config.architectures or [])]
    return (named or candidates)[0]


def build_empty_model(config: PretrainedConfig, source: BaseModel) -> PreTrainedModel:
    """Build the model on the meta device: every module and shape, no memory.

    Raises:
        ConfigError: The model type generates no text.
        Exception: Whatever the model's own code raises.
    """
    # Another guard, so that what a hook does to this empty model is not counted as done to the real one.
    with ConfigGuard(choose_model_class(config, source)), torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # left bare
            copy.deepcopy(config), trust_remote_code=False
        )
    return empty
