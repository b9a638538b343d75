"""The config guard: while it is in place, a guarded model's `config` is a Config object, whatever is assigned to it.

Hooks, wrappers and logging code are known to do `model.config = model.config.to_dict()`. peft then wraps the model
without a word and dies at the first forward pass with `'dict' object has no attribute 'model_type'`, and saving an
adapter silently drops resized embeddings. The guard is a data descriptor on the model's *class*, so it is in place
before a weight is read. Each instance keeps its value under `config` in its own `__dict__`, where it would be without
a guard: copies and pickles know nothing of it, and taking the descriptor away leaves an ordinary attribute behind.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

# Where a composite model keeps the configs of its parts when its class does not declare them (`sub_configs`).
_USUAL_SUB_CONFIGS = ("text_config", "vision_config", "audio_config", "text_encoder", "decoder", "generator")


@dataclass(slots=True)
class _Kept:
    """What an instance was last seen with."""

    config: PretrainedConfig
    sub_configs: dict[str, PretrainedConfig] = field(default_factory=dict)


class _ConfigDescriptor:
    """Stands in for `config` on a guarded class."""

    def __init__(self, guard: ConfigGuard) -> None:
        self.guard = guard

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            # The class itself had no such attribute, and must look as if it had none now.
            raise AttributeError(f"type object {owner.__name__!r} has no attribute 'config'")
        return self.guard.read(instance)

    def __set__(self, instance: Any, value: Any) -> None:
        self.guard.write(instance, value)

    def __delete__(self, instance: Any) -> None:
        try:
            del instance.__dict__["config"]
        except KeyError:
            raise AttributeError("config") from None


class ConfigGuard:
    """Keeps `config` an object on some model classes, from `with` to the end of the block.

    The classes named and peft's wrappers are guarded at once; `cover` adds the classes found inside a loaded model.
    A dict that is assigned over a known Config object is turned away and the object stays; where no object is known
    yet, one is built from the dict by its `model_type`. The same holds for sub-configs such as `text_config`.

    Args:
        classes: The model classes to guard before any of their instances exists.
    """

    def __init__(self, *classes: type[PreTrainedModel]) -> None:
        self.interceptions = 0
        """How many dicts were turned away so far."""
        self.origins: list[str] = []
        """Where each was assigned or found, `file:line in function`, in order."""
        self._classes: tuple[type, ...] = (*classes, PeftModel, BaseTuner)
        self._kept: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()
        self._descriptor = _ConfigDescriptor(self)
        self._before: dict[type, tuple[bool, Any]] = {}

    def __enter__(self) -> Self:
        for cls in self._classes:
            self._install(cls)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for instance in list(self._kept):
            if "config" in instance.__dict__:
                self.read(instance)
        for cls, (existed, before) in reversed(self._before.items()):
            # Somebody may have put something else there meanwhile; that is not ours to remove.
            if cls.__dict__.get("config") is not self._descriptor:
                continue
            if existed:
                setattr(cls, "config", before)  # noqa: B010  (the class is any class; mypy knows no `config` on it)
            else:
                del cls.config  # type: ignore[attr-defined]  # put there by _install
        self._before.clear()
        self._kept.clear()

    def cover(self, model: torch.nn.Module) -> None:
        """Guard the classes of all models inside `model` too, such as the decoder below a causal language model."""
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                self._install(type(module))

    def is_guarding(self, model: object) -> bool:
        """Whether `config` of this object goes through this guard."""
        return any(cls.__dict__.get("config") is self._descriptor for cls in type(model).__mro__)

    def _install(self, cls: type) -> None:
        if cls not in self._before:
            self._before[cls] = ("config" in cls.__dict__, cls.__dict__.get("config"))
            setattr(cls, "config", self._descriptor)  # noqa: B010  (the class is any class; mypy knows no `config` on it)

    def read(self, instance: Any) -> Any:
        """Hand out an instance's config, an object again if something put a dict in its place behind our back.

        Raises:
            AttributeError: The instance has no config of its own; a wrapper then asks the model below.
        """
        try:
            value = instance.__dict__["config"]
        except KeyError:
            raise AttributeError(f"{type(instance).__name__!r} object has no attribute 'config'") from None
        if isinstance(value, Mapping):
            self.write(instance, value)
            value = instance.__dict__.get("config", value)
        if isinstance(value, PretrainedConfig):
            self._keep(instance, value)
        return value

    def write(self, instance: Any, value: Any) -> None:
        """Store what was assigned, or the Config object where a dict was assigned."""
        if isinstance(value, Mapping):
            known = self._known(instance)
            restored = known if known is not None else _config_from(value)
            if restored is not None:
                self._record(f"{type(instance).__name__}.config")
                # A wrapper that had no config of its own must not get one: it would hide the model's.
                if known is None or "config" in instance.__dict__ or instance in self._kept:
                    instance.__dict__["config"] = restored
                    self._keep(instance, restored)
                return
        instance.__dict__["config"] = value
        if isinstance(value, PretrainedConfig):
            self._keep(instance, value)

    def _known(self, instance: Any) -> PretrainedConfig | None:
        candidate = instance.__dict__.get("config")
        if not isinstance(candidate, PretrainedConfig) and instance in self._kept:
            candidate = self._kept[instance].config
        if candidate is None and isinstance(instance, BaseTuner | PeftModel):
            try:
                candidate = instance.__getattr__("config")
            except AttributeError:
                return None
        return candidate if isinstance(candidate, PretrainedConfig) else None

    def _keep(self, instance: Any, config: PretrainedConfig) -> None:
        kept = self._kept.get(instance)
        if kept is None or kept.config is not config:
            kept = self._kept[instance] = _Kept(config)
        for name in {*getattr(config, "sub_configs", {}), *_USUAL_SUB_CONFIGS}:
            value = config.__dict__.get(name)
            if isinstance(value, Mapping):
                restored = kept.sub_configs.get(name) or _sub_config_from(config, name, value)
                setattr(config, name, restored)
                self._record(f"{type(config).__name__}.{name}")
                value = restored
            if isinstance(value, PretrainedConfig):
                kept.sub_configs[name] = value

    def _record(self, what: str) -> None:
        origin = _caller()
        self.interceptions += 1
        self.origins.append(origin)
        logger.warning("%s was turned into a dict; the Config object stays in place. Seen at %s", what, origin)


def _config_from(values: Mapping[str, Any]) -> PretrainedConfig | None:
    """Build a Config object from a dict, None where its `model_type` says nothing to transformers."""
    entries = {str(key): value for key, value in values.items()}
    model_type = entries.pop("model_type", None)
    if not isinstance(model_type, str):
        return None
    try:
        return AutoConfig.for_model(model_type, **entries)
    except ValueError:
        return None


def _sub_config_from(config: PretrainedConfig, name: str, values: Mapping[str, Any]) -> PretrainedConfig:
    declared = getattr(config, "sub_configs", {}).get(name)
    if isinstance(declared, type) and issubclass(declared, PretrainedConfig):
        return declared.from_dict(dict(values))
    # Undeclared and of no known type: a plain Config still answers attribute access, which is what readers need.
    return _config_from(values) or PretrainedConfig(**values)


def _caller() -> str:
    """Name the code that made the assignment or the access, past this module and torch's attribute machinery."""
    frame = sys._getframe(1)  # noqa: SLF001  (the documented way to look at the stack without reading source files)
    while frame.f_back is not None and frame.f_code.co_filename in {__file__, torch.nn.modules.module.__file__}:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
