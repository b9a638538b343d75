"""The protected path: tokenizer, config, guard, then the ladder of quantization rungs.

A rung holds when the model has loaded, its effective quantization has been counted on its modules, and a tiny forward
and backward pass has run. What does not hold is announced and the next rung is tried, unless the error is one that no
other rung can cure (`failures`).
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from runner.errors import LadderError, MemoryExhaustedError
from runner.events import ChildEvent, ModelLoaded, PhaseStarted, RungFailed
from runner.redaction import redact
from runner.reports import RUNG_WORDS, FailedRung, LoadReceipt, Phase, Rung
from runner.spec import RunSpec
from runner.training import ranks
from runner.training.accelerator import choose_compute_dtype, choose_device, fits_in_memory
from runner.training.base_model import BaseModel, locate_base_model
from runner.training.config_guard import ConfigGuard
from runner.training.empty_model import choose_model_class
from runner.training.failures import classify, describe_failure
from runner.training.model_config import load_model_config
from runner.training.probe import ProbeResult, probe
from runner.training.quantized import measure_quantization
from runner.training.rung import RungLoader
from runner.training.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

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


@contextmanager
def protected_load(spec: RunSpec, *, models_root: Path, emit: Emit) -> Iterator[LoadedModel]:
    """Load the project's base model on the first rung of its ladder that holds.

    Emits `phase_started` and `tokenizer_loaded`, `config_loaded`, `rung_failed` (any number), `model_loaded`. The
    config guard is in place inside the block and gone after it.

    Args:
        spec: What to load.
        models_root: Where local base models lie on this host.
        emit: Gets every event.

    Raises:
        TokenizerError, ModelAccessError, ModelFilesError, ConfigError, MemoryExhaustedError, DiskFullError: No rung
            can cure it.
        LadderError: Every permitted rung failed; carries their reasons.
    """
    project = spec.project
    emit(PhaseStarted(phase=Phase.TOKENIZER))
    # One rank downloads, and all of them read the same commit.
    source = ranks.from_first(lambda: locate_base_model(spec, models_root))
    tokenizer = load_tokenizer(source)
    emit(tokenizer.event)
    emit(PhaseStarted(phase=Phase.CONFIG))
    config = load_model_config(source, project.model_type)
    emit(config.event)
    emit(PhaseStarted(phase=Phase.MODEL))
    ranks.from_first(source.fetch_weights)
    with ConfigGuard(choose_model_class(config.config, source)) as guard:
        loader = _loader(spec, source, config.config, guard)
        model, receipt = _climb_down(loader, emit)
        emit(ModelLoaded(receipt=receipt))
        yield LoadedModel(
            model=model,
            tokenizer=tokenizer.tokenizer,
            config=model.config,
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
    return RungLoader(spec.project, source, config, guard, device, choose_compute_dtype(device))


def _climb_down(loader: RungLoader, emit: Emit) -> tuple[PreTrainedModel, LoadReceipt]:
    """Try the rungs in order."""
    started = time.monotonic()
    stored_elements = loader.check_weights()
    ladder = loader.project.quantization.ladder
    failures: list[FailedRung] = []
    for rung, following in zip(ladder, (*ladder[1:], None), strict=True):
        try:
            model, probed = _try_rung(loader, rung)
        except Exception as error:
            final = classify(error)
            failed = describe_failure(rung, error)
            logger.warning("%s failed.\n%s", RUNG_WORDS[rung], redact(traceback.format_exc()))
            if final is not None:
                emit(RungFailed(failed=failed, next_rung=None))
                if final is error:
                    raise
                raise final from error
        else:
            return model, LoadReceipt(
                rung=rung,
                rung_asked=ladder[0],
                failed=tuple(failures),
                compute_dtype=str(loader.compute_dtype).removeprefix("torch."),
                device=str(loader.device),
                load_s=time.monotonic() - started,
                probe_loss=probed.loss,
                probe_grad_norm=probed.grad_norm,
                config_class=type(model.config).__name__,
                guard_interceptions=loader.guard.interceptions,
                processes=ranks.count(),
                **_counts(model),
            )
        # Outside the handler, where the error is gone and with it the frames that hold the model.
        failures.append(failed)
        _free_memory()
        if following is not None and not fits_in_memory(_weight_bytes(following, stored_elements), loader.device):
            emit(RungFailed(failed=failed, next_rung=None))
            raise MemoryExhaustedError(
                f"{RUNG_WORDS[rung]} failed with {failed.reason}, and the device has too little free memory for "
                f"{RUNG_WORDS[following]}.",
                hint="Use a smaller base model or a pool with larger GPUs, or free the device from other processes.",
            )
        emit(RungFailed(failed=failed, next_rung=following))
    raise LadderError(
        "Every permitted rung failed: "
        + "; ".join(f"{RUNG_WORDS[failed.rung]}: {failed.reason}" for failed in failures)
        + ".",
        hint=(
            "The run directory's train.log has the tracebacks."
            if len(ladder) > 1
            else 'quantization.ladder permits one rung only; ["4bit", "8bit", "none"] would permit all.'
        ),
    )


def _try_rung(loader: RungLoader, rung: Rung) -> tuple[PreTrainedModel, ProbeResult]:
    """Load and probe. A function of its own, so that a model whose probe failed is not kept by a variable."""
    with ranks.together(classify):
        model = loader.load(rung)
        probed = probe(model, loader.compute_dtype)
    return model, probed


def _counts(model: PreTrainedModel) -> dict[str, int]:
    measured = measure_quantization(model)
    return {
        "linear_modules": measured.linear_modules,
        "quantized_modules": measured.quantized_modules,
        "total_parameters": measured.total_parameters,
        "quantized_parameters": measured.quantized_parameters,
        "model_bytes": measured.model_bytes,
    }


def _weight_bytes(rung: Rung, elements: int) -> int:
    """Roughly what the weights take on a rung; activations and adapter come on top."""
    return int(elements * {"4bit": 0.6, "8bit": 1.1, "none": 2.0}[rung])


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
