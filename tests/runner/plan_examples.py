"""A preflight of a small host, a finished run, the beginning of a trial: for tests of what a run would take."""

from __future__ import annotations

from typing import Any

from runner.events import DataMixed
from runner.plan import Preflight, RungNeeds
from runner.spec import RunSpec
from tests.examples import RECEIPT, SHARE, SUMMARY

GB = 1_000_000_000

DATA = DataMixed(
    shares=(
        SHARE.model_copy(
            update={
                "dataset_name": "sums",
                "percentage": 50.0,
                "rows_available": 200,
                "rows_used": 100,
                "total_tokens": 2500,
                "held_out_rows": 10,
            }
        ),
    ),
    rows=100,
    longest_tokens=30,
    truncated_rows=0,
)
FOUND = Preflight(
    device="cpu (2 threads)",
    available_bytes=10 * GB,
    base_model="/models/tiny-llama",
    revision=None,
    fetch_bytes=0,
    cache_dir="/cache",
    gpus=1,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
    halves_batch=True,
    data=DATA,
    total_steps=12,
    trainable_parameters=1000,
    rungs=(
        RungNeeds(rung="4bit", load_peak_bytes=2 * GB, steady_bytes=GB, training_bytes=3 * GB),
        RungNeeds(rung="none", load_peak_bytes=5 * GB, steady_bytes=4 * GB, training_bytes=6 * GB),
    ),
)
FINISHED = SUMMARY.model_copy(update={"train_s": 40.0, "duration_s": 55.0, "peak_bytes": 4 * GB})

BEGINNING = f"""
from datetime import datetime, timedelta, UTC
NOW = datetime(2026, 11, 24, tzinfo=UTC)

def at(seconds, kind, **fields):
    emit(kind, at=(NOW + timedelta(seconds=seconds)).isoformat(), **fields)

def step(number, seconds, peak):
    at(seconds, "metrics_logged", step=number, total_steps=12, epoch=1.0, loss=1.0, learning_rate=0.1, tokens_per_s=9.0,
       eta_s=1.0, peak_bytes=peak)

at(0, "phase_started", phase="versions")
at(1, "phase_started", phase="model")
at(4, "model_loaded", receipt={RECEIPT.model_dump(mode="json")!r})
at(5, "phase_started", phase="baseline")
at(7, "phase_started", phase="training")
at(8, "training_started", total_steps=12, trainable_parameters=1000)
"""
"""A child that needs 8 s up to its first step: 3 for the model, 2 for the answers before training."""


def with_training(spec: RunSpec, **changed: Any) -> RunSpec:
    """The spec with other settings of its training."""
    training = spec.project.training.model_copy(update=changed)
    return spec.model_copy(update={"project": spec.project.model_copy(update={"training": training})})
