"""The protected path: tokenizer, config, guard, then the ladder of quantization rungs (`ladder`).

What does not hold is announced and the next rung is tried, unless the error is one that no other rung can cure
(`failures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from runner.errors import LadderError
from runner.events import ChildEvent, ModelLoaded, PhaseStarted
from runner.reports import RUNG_WORDS, LoadReceipt, Phase, Rung
from runner.spec import RunSpec
from runner.training import ranks
from runner.training.accelerator import choose_compute_dtype, choose_device
from runner.training.loading.base_model import BaseModel, locate_base_model
from runner.training.loading.config_guard import ConfigGuard
from runner.training.loading.empty_model import choose_model_class
from runner.training.loading.failures import classify, describe_failure
from runner.training.loading.ladder import climb_down
from runner.training.loading.model_config import LoadedConfig, load_model_config
from runner.training.loading.rung import RungLoader
from runner.training.loading.tokenizer import LoadedTokenizer, load_tokenizer
from runner.training.stopping import StopSwitch

Emit = Callable[[ChildEvent], None]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model that can be trained, and everything known about how it came to be."""

    model: PreTrainedModel
    """Frozen, on one device, in the mode that `from_pretrained` left it in."""
    tokenizer: PreTrainedTokenizerBase
    """Has a pad token."""
    config: PretrainedConfig
    """The model's own Config object."""
    receipt: LoadReceipt
    guard: ConfigGuard
    """In place until the `with` block of `protected_load` ends."""
    rung: Rung
    source: BaseModel


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """What is known of a base model before its weights are read."""

    source: BaseModel
    tokenizer: LoadedTokenizer
    config: LoadedConfig


def open_base_model(source: BaseModel, model_type: str | None, emit: Emit) -> OpenedModel:
    """Load tokenizer and configuration; emits `tokenizer_loaded`, `phase_started` and `config_loaded`.

    Args:
        source: From `locate_base_model`.
        model_type: The project's.
        emit: Gets every event.

    Raises:
        TokenizerError, ConfigError: One of them cannot be read.
    """
    tokenizer = load_tokenizer(source)
    emit(tokenizer.event)
    emit(PhaseStarted(phase=Phase.CONFIG))
    config = load_model_config(source, model_type)
    emit(config.event)
    return OpenedModel(source, tokenizer, config)


@contextmanager
def protected_load(
    spec: RunSpec, *, models_root: Path, emit: Emit, stop: StopSwitch | None = None
) -> Iterator[LoadedModel]:
    """Load the project's base model from nothing: find it, open it, and load its weights as `load_weights` does.

    Args:
        spec: What to load.
        models_root: Where local base models lie on this host.
        emit: Gets every event.
        stop: Set it to end the ladder between two rungs.

    Raises:
        TokenizerError, ModelAccessError: No rung can cure it; and all that `load_weights` raises.
    """
    emit(PhaseStarted(phase=Phase.TOKENIZER))
    # One rank downloads, and all of them read the same commit.
    source = ranks.from_first(lambda: locate_base_model(spec, models_root))
    opened = open_base_model(source, spec.project.model_type, emit)
    with load_weights(spec, opened, emit=emit, stop=stop) as loaded:
        yield loaded


@contextmanager
def load_weights(
    spec: RunSpec, opened: OpenedModel, *, emit: Emit, stop: StopSwitch | None = None
) -> Iterator[LoadedModel]:
    """Load a base model on the first rung of its ladder that holds.

    Emits `phase_started`, `rung_failed` (any number) and `model_loaded`. The config guard is in place inside the block
    and gone after it.

    Args:
        spec: What to load.
        opened: Its tokenizer and configuration.
        emit: Gets every event.
        stop: Set it to end the ladder between two rungs.

    Raises:
        ModelAccessError, ModelFilesError, ConfigError, MemoryExhaustedError, DiskFullError: No rung can cure it.
        LadderError: Every permitted rung failed, or the next would not fit; carries the reasons.
        StopRequestedError: The switch was set.
    """
    source, tokenizer, config = opened.source, opened.tokenizer, opened.config
    emit(PhaseStarted(phase=Phase.MODEL))
    ranks.from_first(source.fetch_weights)
    with ConfigGuard(choose_model_class(config.config, source)) as guard:
        loader = _loader(spec, source, config.config, guard)
        held = climb_down(loader, emit, stop or StopSwitch())
        receipt = held.receipt.model_copy(
            update={
                "tokenizer_class": tokenizer.event.tokenizer_class,
                "pad_token": tokenizer.event.pad_token,
                "pad_choice": tokenizer.event.pad_choice,
                "config_left_out": config.left_out,
            }
        )
        emit(ModelLoaded(receipt=receipt))
        yield LoadedModel(
            model=held.model,
            tokenizer=tokenizer.tokenizer,
            config=held.model.config,
            receipt=receipt,
            guard=guard,
            rung=receipt.rung,
            source=source,
        )


def load_on_rung(spec: RunSpec, rung: Rung, *, models_root: Path) -> PreTrainedModel:
    """Load the same base model on a rung that is known to hold, without ladder and probe; for a verifying process.

    Raises:
        TrainingError: The base model cannot be read any more, or does not fit.
    """
    source = locate_base_model(spec, models_root)
    config = load_model_config(source, spec.project.model_type).config
    source.fetch_weights()
    try:
        with ConfigGuard(choose_model_class(config, source)) as guard:
            loader = _loader(spec, source, config, guard)
            loader.check_weights()
            return loader.load(rung)
    except Exception as error:
        final = classify(error)
        if final is None:
            failed = describe_failure(rung, error)
            final = LadderError(
                f"The base model {source.name!r} does not load with {RUNG_WORDS[rung]} again: {failed.reason}",
                hint="The run directory's train.log has the traceback.",
            )
        raise final from error


def _loader(spec: RunSpec, source: BaseModel, config: PretrainedConfig, guard: ConfigGuard) -> RungLoader:
    device = choose_device()
    compute_dtype = choose_compute_dtype(device, spec.project.quantization.bnb_4bit_compute_dtype)
    return RungLoader(spec.project, source, config, guard, device, compute_dtype)
