"""Puts the adapter onto the base model, after checking that the modules it names are there."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import set_seed

from runner.errors import TargetModulesError, joined
from runner.hyperparameters import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
NAMES_SHOWN = 20


def add_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Wrap the base model; its own parameters are frozen and the adapter's start is drawn from `seed`.

    Args:
        model: The base model as loaded, quantized or not.
        lora: The project's `[lora]`.
        seed: `training.seed`.

    Raises:
        TargetModulesError: `[lora]` names what the model does not have, or what cannot be adapted; tells all of it.
    """
    _check_modules(model, lora)
    config = lora_config(lora)
    # Before, not after: whatever drew random numbers so far must not move the adapter's start.
    set_seed(seed)
    try:
        with without_peft_noise(model):
            wrapped = get_peft_model(model, config)
    except ValueError as error:
        # PEFT writes whole modules out.
        words = " ".join(re.sub(r"\(\n.*\n\)", "", str(error), flags=re.DOTALL).split()).rstrip(".")
        raise TargetModulesError(
            f"PEFT does not take [lora] for this base model: {words[:300]}.",
            hint="Correct target_modules, exclude_modules, modules_to_save or layers_to_transform in the project.",
        ) from error
    assert isinstance(wrapped, PeftModel)  # noqa: S101  # a mixed model comes only when asked for
    # Left to itself, PEFT reads the base model's config.json again at every save, to see whether the vocabulary was
    # resized. It never is here, and that file may be one that transformers cannot read as it is.
    wrapped.save_pretrained = partial(wrapped.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return wrapped


def lora_config(lora: Lora) -> LoraConfig:
    """Hand `[lora]` to PEFT."""
    target, excluded = lora.target_modules, lora.exclude_modules
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=target if isinstance(target, str) else list(target),
        exclude_modules=excluded if isinstance(excluded, str) else list(excluded) or None,
        modules_to_save=list(lora.modules_to_save) or None,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        bias=lora.bias,
        init_lora_weights=lora.init_lora_weights,
        layers_to_transform=list(lora.layers_to_transform) or None,
        layers_pattern=list(lora.layers_pattern) or None,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        task_type="CAUSAL_LM",
    )


@contextmanager
def without_peft_noise(model: PreTrainedModel) -> Iterator[None]:
    """Silence warnings that wrapping a model gives on the supported stacks and that nobody could act on."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5 by an older name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        if not model.config.get_text_config().tie_word_embeddings:
            # PEFT 0.18 goes by what the class could tie, whatever the config says.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
        yield


def keep_full_precision(model: PeftModel) -> None:
    """Hold what is trained in float32: in bfloat16 an update below 1/256 of the weight would be rounded away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def settle_precision(model: PeftModel) -> None:
    """Bring `modules_to_save` to the base model's precision, in which everybody who loads the adapter will have them.

    From here on the trained model in memory computes what the saved adapter will.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            reference = next(module.original_module.parameters())
            module.modules_to_save.to(dtype=reference.dtype)


def _check_modules(model: PreTrainedModel, lora: Lora) -> None:
    """Refuse all names at once that mean nothing to the model."""
    modules = {name: module for name, module in model.named_modules() if name}
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers leaves it bare
    # By the base class: Linear4bit and Linear8bitLt are subclasses of it.
    linear = {
        _last(name) for name, module in modules.items() if isinstance(module, torch.nn.Linear) and module is not head
    }
    everything = {_last(name) for name in modules if not _last(name).isdigit()}
    found: list[TargetModulesError] = []

    def look_for(setting: str, wanted: Iterable[str], pattern: bool, offered: set[str], also: str = "") -> set[str]:
        chosen = set()
        for one in wanted:
            matches = {name for name in modules if _matches(name, one, pattern=pattern)}
            if not matches:
                found.append(
                    TargetModulesError(
                        f"lora.{setting} names {one!r}, which the base model does not have.",
                        hint=f"It has {_listed(offered)}{also}.",
                    )
                )
            chosen |= matches
        return chosen

    if lora.target_modules != ALL_LINEAR:
        as_text = isinstance(lora.target_modules, str)
        also = f", or use {ALL_LINEAR!r}"
        chosen = look_for("target_modules", _as_names(lora.target_modules), as_text, linear, also)
        if any(modules[name] is head for name in chosen):
            found.append(
                TargetModulesError(
                    "lora.target_modules names the output layer, whose adapter TRL would leave untrained.",
                    hint="Name it in lora.modules_to_save instead, which trains it whole.",
                )
            )
    excludes_by_text = isinstance(lora.exclude_modules, str)
    look_for("exclude_modules", _as_names(lora.exclude_modules), excludes_by_text, linear)
    look_for("modules_to_save", lora.modules_to_save, False, everything)
    for setting in ("rank_pattern", "alpha_pattern"):
        # PEFT's rule for these: a pattern for the whole name or for its end.
        patterns = [rf"(.*\.)?({pattern})" for pattern in getattr(lora, setting)]
        known = [any(re.fullmatch(pattern, name) for name in modules) for pattern in patterns]
        unknown = [name for name, is_known in zip(getattr(lora, setting), known, strict=True) if not is_known]
        look_for(setting, unknown, False, linear)
    if found:
        raise joined(found)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _as_names(target: str | tuple[str, ...]) -> Iterable[str]:
    return (target,) if isinstance(target, str) else target


def _matches(name: str, wanted: str, *, pattern: bool) -> bool:
    """Follow PEFT's rule: text is a pattern for the whole name, a list holds names or ends of names."""
    if pattern:
        return re.fullmatch(wanted, name) is not None
    return name == wanted or name.endswith(f".{wanted}")


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMES_SHOWN} more" if len(ordered) > NAMES_SHOWN else ""
    return ", ".join(ordered[:NAMES_SHOWN]) + more
