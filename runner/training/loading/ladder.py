"""The descent: rung by rung until one has loaded, been counted and survived a tiny forward and backward pass.

Only what a rung itself raises can let the ladder fall (`failures`); an error between two rungs ends the attempt.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from runner.errors import LadderError, MemoryExhaustedError
from runner.events import ChildEvent, RungFailed
from runner.redaction import redact
from runner.reports import RUNG_WORDS, FailedRung, LoadReceipt, Rung
from runner.training import ranks
from runner.training.loading.failures import classify, describe_failure
from runner.training.loading.probe import ProbeResult, probe
from runner.training.loading.quantization_config import stored_quantization
from runner.training.loading.quantized import measure_quantization
from runner.training.loading.rung import RungLoader
from runner.training.loading.unquantized import list_unquantized
from runner.training.loading.weight_estimate import WeightEstimate, estimate_weights
from runner.training.memory import MemoryMeter, free_bytes, release_memory
from runner.training.stopping import StopRequestedError, StopSwitch

logger = logging.getLogger(__name__)

Emit = Callable[[ChildEvent], None]

_GB = 1_000_000_000


@dataclass(frozen=True, slots=True)
class HeldRung:
    """The rung that holds."""

    model: PreTrainedModel
    receipt: LoadReceipt


def climb_down(loader: RungLoader, emit: Emit, stop: StopSwitch) -> HeldRung:
    """Try the project's rungs in order.

    Emits `rung_failed` for each that does not hold.

    Raises:
        TrainingError: One that no rung can cure.
        LadderError: No permitted rung holds (`ladder-exhausted`), or one failed and there is no room for the next
            (`ladder-no-room`).
        StopRequestedError: The switch was set between two rungs.
    """
    started = time.monotonic()
    loader.check_weights()
    ladder = loader.project.quantization.ladder
    failures: list[FailedRung] = []
    if any(ranks.gather(stop.is_set)):
        raise StopRequestedError
    for rung, following in zip(ladder, (*ladder[1:], None), strict=True):
        # What earlier work left in the heap would be taken again unseen.
        release_memory()
        with MemoryMeter(loader.device) as meter:
            try:
                model, probed = _try_rung(loader, rung)
            except StopRequestedError:
                raise
            except Exception as error:
                failed = describe_failure(rung, error)
                logger.warning("%s failed.\n%s", RUNG_WORDS[rung], redact(traceback.format_exc()))
                final = classify(error)
                if isinstance(final, MemoryExhaustedError) and final is not error:
                    final = _with_figures(loader, rung, final)
                if final is not None:
                    emit(RungFailed(failed=failed, next_rung=None))
                    if final is error:
                        raise
                    raise final from error
            else:
                release_memory()
                load_s = time.monotonic() - started
                receipt = _receipt(
                    loader, rung, failures=failures, model=model, probed=probed, meter=meter, load_s=load_s
                )
                return HeldRung(model, receipt)
        # Outside the handler, where the error is gone and with it the frames that hold the model.
        release_memory()
        failed = failed.model_copy(update={"held_bytes": meter.now_bytes})
        failures.append(failed)
        # What one rank cannot do, none does.
        obstacles = ranks.gather(_obstacle(loader, following) if following is not None else None)
        obstacle = next((found for found in obstacles if found is not None), None)
        stopped = any(ranks.gather(stop.is_set))
        emit(RungFailed(failed=failed, next_rung=None if stopped or obstacle else following))
        if stopped:
            raise StopRequestedError
        if obstacle is not None:
            raise _no_room(failed, obstacle)
    raise _exhausted(loader, failures)


def _try_rung(loader: RungLoader, rung: Rung) -> tuple[PreTrainedModel, ProbeResult]:
    """Load and probe. A function of its own, so that a model whose probe failed is not kept by a variable."""
    with ranks.together(classify):
        model = loader.load(rung)
        probed = probe(model, loader.compute_dtype)
    return model, probed


def _receipt(
    loader: RungLoader,
    rung: Rung,
    *,
    failures: list[FailedRung],
    model: PreTrainedModel,
    probed: ProbeResult,
    meter: MemoryMeter,
    load_s: float,
) -> LoadReceipt:
    measured = measure_quantization(model)
    stored = stored_quantization(loader.config)
    return LoadReceipt(
        rung=rung,
        rung_asked=loader.project.quantization.ladder[0],
        failed=tuple(failures),
        linear_modules=measured.linear_modules,
        quantized_modules=measured.quantized_modules,
        total_parameters=measured.total_parameters,
        quantized_parameters=measured.quantized_parameters,
        unquantized=list_unquantized(model) if measured.quantized_modules else (),
        stored_quantization=stored[0] if stored is not None else None,
        model_bytes=measured.model_bytes,
        load_peak_bytes=meter.peak_bytes,
        steady_bytes=meter.now_bytes,
        memory_method=meter.method,
        compute_dtype=str(loader.compute_dtype).removeprefix("torch."),
        device=str(loader.device),
        load_s=load_s,
        probe_loss=probed.loss,
        probe_grad_norm=probed.grad_norm,
        config_class=type(model.config).__name__,
        revision=loader.source.revision,
        guard_interceptions=loader.guard.interceptions,
        processes=ranks.count(),
    )


def _obstacle(loader: RungLoader, rung: Rung) -> str | None:
    """Say why a rung cannot fit on the device, None where it may."""
    estimate, free = _estimate(loader, rung), free_bytes(loader.device)
    if estimate is None or free is None:
        return None
    needed, shared = estimate.load_peak_bytes, ""
    if loader.device.type == "cpu" and ranks.count() > 1:
        # A GPU is each process's own; the host's memory all of them fill at the same time.
        needed, shared = ranks.count() * needed, f" by {ranks.count()} processes"
    if needed <= free:
        return None
    return (
        f"{RUNG_WORDS[rung]} needs about {_size(needed)} while the weights load{shared}, and {_size(free)} are free on "
        f"{loader.device}"
    )


def _with_figures(loader: RungLoader, rung: Rung, error: MemoryExhaustedError) -> MemoryExhaustedError:
    """Add what the weights take, so that people see by how much they missed."""
    estimate = _estimate(loader, rung)
    if estimate is None:
        return error
    need = f"With {RUNG_WORDS[rung]} the weights take about {_size(estimate.load_peak_bytes)} while they load."
    return MemoryExhaustedError(f"{error.message} {need}", hint=error.hint)


def _estimate(loader: RungLoader, rung: Rung) -> WeightEstimate | None:
    try:
        return estimate_weights(loader.source, loader.config, rung, loader.project.quantization, loader.compute_dtype)
    except Exception:  # noqa: BLE001  # see below
        # Whatever it is, loading this rung will meet it too, and say so as the rung's own failure.
        logger.warning("%s cannot be estimated.\n%s", RUNG_WORDS[rung], redact(traceback.format_exc()))
        return None


def _no_room(failed: FailedRung, obstacle: str) -> LadderError:
    return LadderError(
        f"{_told(failed)}. No lower rung was tried: {obstacle}.",
        hint=f"{failed.meaning} Cure that, or use a smaller base model, a pool with more memory, or free the device "
        "from other processes. The run directory's train.log has the traceback.",
        code="ladder-no-room",
    )


def _exhausted(loader: RungLoader, failures: list[FailedRung]) -> LadderError:
    ladder = loader.project.quantization.ladder
    stored = stored_quantization(loader.config)
    if stored is not None and stored[1] not in ladder:
        hint = (
            f"Add {stored[1]!r} to quantization.ladder, on which these files can be loaded, or name the unquantized "
            "model as base_model."
        )
    elif len(ladder) == 1:
        hint = (
            f'{failures[0].meaning} quantization.ladder permits one rung only; ["4bit", "8bit", "none"] would permit '
            "all. The run directory's train.log has the traceback."
        )
    else:
        hint = "The run directory's train.log has the tracebacks."
    if len(failures) == 1:
        return LadderError(f"{_told(failures[0])}.", hint=hint)
    return LadderError(f"Every permitted rung failed: {'; '.join(map(_told, failures))}.", hint=hint)


def _told(failed: FailedRung) -> str:
    return f"{RUNG_WORDS[failed.rung]} failed with {failed.error_class}: {failed.reason}"


def _size(size: int) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB else f"{size / 1_000_000:.1f} MB"
