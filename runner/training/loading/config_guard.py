"""The config guard: while it is in place, a guarded model's `config` is a Config object, whatever is assigned to it.

Hooks, wrappers and logging code are known to do `model.config = model.config.to_dict()`. peft then wraps the model
without a word and dies at the first forward pass with `'dict' object has no attribute 'model_type'`, and saving an
adapter silently drops resized embeddings. The guard is a data descriptor on the model's *class*, so it is in place
before a weight is read. Each instance keeps its value under `config` in its own `__dict__`, where it would be without
a guard: copies and pickles know nothing of it, and taking the descriptor away leaves an ordinary attribute behind.
The whole story, and what a guard cannot do, is in `docs/MODEL_LOADING_DICT_ISSUE.md`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import ref

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

USUAL_SUB_CONFIGS = frozenset({"text_config", "vision_config", "audio_config", "text_encoder", "decoder", "generator"})
"""Where a composite model keeps the configs of its parts when its class does not declare them (`sub_configs`)."""

_NOT_THE_CALLER = (__file__, str(Path(torch.__file__).parent))
_INSTALLING = threading.Lock()
# Past the `__getattribute__` of Config classes, which looks for renamed attributes first and takes most of a read.
_plain_attribute = object.__getattribute__


@dataclass(frozen=True, slots=True)
class _Kept:
    """What an instance was last seen with."""

    instance: ref[Any]
    """Takes this record away when the instance goes."""
    config: PretrainedConfig
    names: frozenset[str]
    """Attributes of the config that may hold the configs of parts."""
    sub_configs: dict[str, PretrainedConfig] = field(default_factory=dict)


def _get(descriptor: _ConfigDescriptor, instance: Any, owner: type) -> Any:
    if instance is not None and "config" in instance.__dict__:
        guard, value = descriptor.guard, instance.__dict__["config"]
        kept = guard.kept.get(id(instance))
        # The quick way, for all but the first read and for models without parts: nothing can be wrong here.
        if (
            kept is not None
            and kept.config is value
            and _plain_attribute(value, "__dict__").keys().isdisjoint(kept.names)
        ):
            return value
        return guard.read(instance)
    # As without the guard: what the class itself holds under this name, which for most is nothing.
    if descriptor.existed:
        return descriptor.before
    kind = "type object" if instance is None else "object of class"
    raise AttributeError(f"{kind} {owner.__name__!r} has no attribute 'config'")


class _ConfigDescriptor(property):
    """Stands in for `config` on one class while guards are in place there; the one that came last decides.

    torch.compile must not trace the guard: torch 2.13 would make the guard's records part of the compiled code, and
    2.9 never comes out of its own descriptor again. It asks an object for its attribute, and looks no further, where
    that attribute is a property whose getter is written in C, and `__get__` no Python function. So this is a property
    with a C function for a getter that nobody calls, and `__get__` is the C side of `_get`.
    Source: `UserDefinedObjectVariable` in torch/_dynamo/variables/user_defined.py of both versions.
    """

    def __init__(self, cls: type) -> None:
        super().__init__(id)
        self.existed = "config" in cls.__dict__
        self.before = cls.__dict__.get("config")
        self.guards: list[ConfigGuard] = []
        self.guard: ConfigGuard

    __get__ = _get.__call__  # type: ignore[operator]  # mypy looks for the type of a call, not for its name

    def __set__(self, instance: Any, value: Any) -> None:
        self.guard.write(instance, value)

    def __delete__(self, instance: Any) -> None:
        try:
            del instance.__dict__["config"]
        except KeyError:
            raise AttributeError("config") from None


class ConfigGuard:
    """Keeps `config` an object on model classes, from `with` to the end of the block.

    Every transformers model and peft's wrappers are guarded, whatever their class; one that holds a `config` of its
    own besides has to be named, or found by `cover`. A dict that is assigned over a known Config object is turned
    away and the object stays; where no object is known yet, one is built from the dict by its `model_type`. The same
    holds for sub-configs such as `text_config`. Threads may share a guarded model; guards may overlap in any order.

    Args:
        classes: Model classes to guard before any of their instances exists.
    """

    def __init__(self, *classes: type[PreTrainedModel]) -> None:
        self.interceptions = 0
        """How many dicts were turned away so far."""
        self.origins: list[str] = []
        """Where they were assigned or found, `file:line in function`: each place once, in order."""
        self._classes: tuple[type, ...] = (PreTrainedModel, PeftModel, BaseTuner, *classes)
        self._installed: dict[type, _ConfigDescriptor] = {}
        self.kept: dict[int, _Kept] = {}
        """What instances were last seen with, by identity: the detour of a WeakKeyDictionary would double a read."""
        self._turning_away = threading.RLock()

    def __enter__(self) -> Self:
        for cls in self._classes:
            self._install(cls)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            for kept in list(self.kept.values()):
                instance = kept.instance()
                if instance is not None and "config" in instance.__dict__:
                    self.read(instance)
        finally:
            for cls in reversed(self._installed):
                self._uninstall(cls)
            self._installed.clear()
            self.kept.clear()

    def cover(self, model: torch.nn.Module) -> None:
        """Guard the classes of all models inside `model` too, for one that holds a `config` of its own."""
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and not self.is_guarding(module):
                self._install(type(module))

    def is_guarding(self, model: object) -> bool:
        """Whether `config` of this object goes through this guard."""
        found = next((cls.__dict__["config"] for cls in type(model).__mro__ if "config" in cls.__dict__), None)
        return isinstance(found, _ConfigDescriptor) and self in found.guards

    def _install(self, cls: type) -> None:
        with _INSTALLING:
            if cls in self._installed:
                return
            descriptor = cls.__dict__.get("config")
            if not isinstance(descriptor, _ConfigDescriptor):
                descriptor = _ConfigDescriptor(cls)
            descriptor.guards.append(self)
            descriptor.guard = self
            self._installed[cls] = descriptor
            setattr(cls, "config", descriptor)  # noqa: B010  (the class is any class; mypy knows no `config` on it)

    def _uninstall(self, cls: type) -> None:
        with _INSTALLING:
            descriptor = self._installed[cls]
            descriptor.guards.remove(self)
            if descriptor.guards:
                descriptor.guard = descriptor.guards[-1]
            # Somebody may have put something else there meanwhile; that is not ours to remove.
            elif cls.__dict__.get("config") is descriptor:
                if descriptor.existed:
                    setattr(cls, "config", descriptor.before)  # noqa: B010  (as above)
                else:
                    del cls.config  # type: ignore[attr-defined]  # put there by _install

    def read(self, instance: Any) -> Any:
        """Hand out the config that an instance has, an object again if a dict was put in its place behind our back."""
        value = instance.__dict__["config"]
        if isinstance(value, Mapping):
            with self._turning_away:
                value = instance.__dict__["config"]
                # Unless another thread just has.
                if isinstance(value, Mapping):
                    self._turn_away(instance, value)
                    value = instance.__dict__["config"]
        if isinstance(value, PretrainedConfig):
            self._keep(instance, value)
        return value

    def write(self, instance: Any, value: Any) -> None:
        """Store what was assigned, or the Config object where a dict was assigned."""
        if isinstance(value, Mapping):
            with self._turning_away:
                self._turn_away(instance, value)
        else:
            instance.__dict__["config"] = value
            if isinstance(value, PretrainedConfig):
                self._keep(instance, value)

    def _turn_away(self, instance: Any, values: Mapping[str, Any]) -> None:
        known = self._known(instance)
        restored = known if known is not None else _config_from(values)
        if restored is None:
            instance.__dict__["config"] = values
            return
        self._record(f"{type(instance).__name__}.config")
        # A wrapper that had no config of its own must not get one: it would hide the model's.
        if known is None or "config" in instance.__dict__ or id(instance) in self.kept:
            instance.__dict__["config"] = restored
            self._keep(instance, restored)

    def _known(self, instance: Any) -> PretrainedConfig | None:
        candidate = instance.__dict__.get("config")
        kept = self.kept.get(id(instance))
        if not isinstance(candidate, PretrainedConfig) and kept is not None:
            candidate = kept.config
        if candidate is None and isinstance(instance, BaseTuner | PeftModel):
            try:
                candidate = instance.__getattr__("config")
            except AttributeError:
                return None
        return candidate if isinstance(candidate, PretrainedConfig) else None

    def _keep(self, instance: Any, config: PretrainedConfig) -> None:
        key = id(instance)
        kept = self.kept.get(key)
        if kept is None or kept.config is not config:
            all_kept = self.kept
            names = USUAL_SUB_CONFIGS | {*getattr(config, "sub_configs", ())}
            kept = _Kept(ref(instance, lambda _: all_kept.pop(key, None)), config, names)
            all_kept[key] = kept
        values = _plain_attribute(config, "__dict__")
        for name in kept.names:
            value = values.get(name)
            if isinstance(value, Mapping):
                with self._turning_away:
                    value = self._keep_sub_config(kept, name)
            if isinstance(value, PretrainedConfig):
                kept.sub_configs[name] = value

    def _keep_sub_config(self, kept: _Kept, name: str) -> Any:
        """Turn a sub-config that is a dict back into an object, unless another thread just has."""
        value = _plain_attribute(kept.config, "__dict__").get(name)
        if not isinstance(value, Mapping):
            return value
        restored = kept.sub_configs.get(name) or sub_config_from(kept.config, name, value)
        setattr(kept.config, name, restored)
        self._record(f"{type(kept.config).__name__}.{name}")
        return restored

    def _record(self, what: str) -> None:
        origin = _caller()
        self.interceptions += 1
        # Once a place: a callback may do it at every one of a hundred thousand steps.
        if origin not in self.origins:
            self.origins.append(origin)
            logger.warning("%s was turned into a dict; the Config object stays in place. Seen at %s", what, origin)


def _config_from(values: Mapping[str, Any]) -> PretrainedConfig | None:
    """Build a Config object from a dict, None where transformers knows no such `model_type` or refuses the values."""
    entries = {str(key): value for key, value in values.items()}
    model_type = entries.pop("model_type", None)
    if not isinstance(model_type, str):
        return None
    try:
        return AutoConfig.for_model(model_type, **entries)
    except Exception as error:  # noqa: BLE001  (each config class has its own; whoever reads the dict will fail)
        logger.warning("A dict that stands in place of a %s config makes none: %s", model_type, error)
        return None


def sub_config_from(config: PretrainedConfig, name: str, values: Mapping[str, Any]) -> PretrainedConfig:
    """Build the config of a part, such as `text_config`, from a dict.

    Args:
        config: The config of the whole.
        name: The attribute of it that holds the dict.
        values: The dict.
    """
    declared = getattr(config, "sub_configs", {}).get(name)
    if isinstance(declared, type) and issubclass(declared, PretrainedConfig):
        return declared.from_dict(dict(values))
    # Undeclared and of no known type: a plain Config still answers attribute access, which is what readers need.
    return _config_from(values) or PretrainedConfig(**values)


def _caller() -> str:
    """Name the code that made the assignment or the access, past this module and torch's attribute machinery."""
    frame = sys._getframe(1)  # noqa: SLF001  (the documented way to look at the stack without reading source files)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_CALLER):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
