"""Earlier runs of the same shape, which tell what a run takes without a trial."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runner.child import Spawn
from runner.events import PhaseStarted, RunSucceeded, TrainingStarted
from runner.history import find_earlier_run
from runner.job_events import AnyEvent
from runner.planning import plan_from
from runner.reports import Phase
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from runner.versions import report_versions
from tests.runner.plan_examples import DATA, FINISHED, FOUND, GB, with_training

Scripted = Callable[[str], Spawn]


@pytest.fixture
def keep_run(settings: RunnerSettings, run_spec: RunSpec) -> Callable[..., None]:
    """Leave the events of a finished run of `run_spec` in the output root; keywords replace events by their kind."""

    def keep(spec: RunSpec = run_spec, **replaced: AnyEvent) -> None:
        attempt = settings.output_root / "demo" / "demo-abcde" / "attempt-1"
        attempt.mkdir(parents=True)
        (attempt / "spec.json").write_text(spec.model_dump_json())
        events = {
            "versions_reported": report_versions(FOUND.device),
            "data_mixed": DATA,
            "training_started": TrainingStarted(total_steps=12, trainable_parameters=1000),
            "run_succeeded": RunSucceeded(summary=FINISHED, adapter_path="adapter"),
            **replaced,
        }
        (attempt / "events.jsonl").write_text("".join(f"{event.model_dump_json()}\n" for event in events.values()))

    return keep


def test_an_earlier_run_of_the_same_shape_tells_time_and_memory_without_a_trial(
    keep_run: Callable[..., None], scripted: Scripted, run_spec: RunSpec, settings: RunnerSettings
) -> None:
    # A run on this device has written its choice in the place of `auto`.
    keep_run(with_training(run_spec, learning_rate=1e-5, optim="adamw_torch_fused"))

    planned = plan_from(
        FOUND,
        run_spec,
        settings,
        measure=True,
        tell=lambda _: None,
        spawn=scripted("raise SystemExit('tried')"),
    )

    assert planned.time is not None
    assert planned.memory is not None
    assert (planned.time.origin, planned.time.duration_s, planned.time.training_s) == ("history", 55.0, 40.0)
    assert (planned.memory.origin, planned.memory.peak_bytes) == ("history", 4 * GB)


@pytest.mark.parametrize(
    "replaced",
    [
        {"versions_reported": report_versions("cpu (64 threads)")},
        {"data_mixed": DATA.model_copy(update={"rows": 99})},
        {"training_started": TrainingStarted(total_steps=12, trainable_parameters=1000, resumed_from_step=6)},
        {"run_succeeded": PhaseStarted(phase=Phase.TRAINING)},
    ],
    ids=["another device", "other rows", "half of it", "cut off"],
)
def test_a_run_on_another_device_with_other_rows_or_not_whole_tells_nothing(
    replaced: dict[str, AnyEvent], keep_run: Callable[..., None], run_spec: RunSpec, settings: RunnerSettings
) -> None:
    keep_run(**replaced)

    assert find_earlier_run(run_spec, FOUND, settings.output_root) is None


def test_of_a_run_that_mixed_its_rows_again_the_later_mix_counts(
    keep_run: Callable[..., None], run_spec: RunSpec, settings: RunnerSettings
) -> None:
    keep_run(data_mixed=DATA.model_copy(update={"rows": 99}), training_started=DATA)

    assert find_earlier_run(run_spec, FOUND, settings.output_root) == FINISHED


def test_a_run_with_another_batch_or_with_unreadable_events_tells_nothing(
    keep_run: Callable[..., None], run_spec: RunSpec, settings: RunnerSettings
) -> None:
    keep_run()
    assert find_earlier_run(run_spec, FOUND, settings.output_root) == FINISHED
    assert find_earlier_run(with_training(run_spec, per_device_train_batch_size=1), FOUND, settings.output_root) is None

    events = settings.output_root / "demo" / "demo-abcde" / "attempt-1" / "events.jsonl"
    events.write_text(events.read_text() + '{"kind": "of tomorrow"}\n')

    assert find_earlier_run(run_spec, FOUND, settings.output_root) is None
