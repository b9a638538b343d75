"""The replies of a thread, whole. Data, evaluation and limits have modules of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import pytest

from bot.render.message import Message, context, section
from bot.render.thread import render_milestone
from bot.story import Story
from runner.event_lines import StoredEvent
from runner.events import (
    BatchHalved,
    CheckpointChosen,
    CheckpointSaved,
    ChildEvent,
    ConfigLoaded,
    MetricsLogged,
    ModelLoaded,
    PhaseStarted,
    RungFailed,
    RunSucceeded,
    TokenizerLoaded,
    TrainingStarted,
    VersionsReported,
)
from runner.job_events import (
    AnyEvent,
    JobCancelled,
    JobClaimed,
    JobDeclined,
    JobFailed,
    JobQueued,
    JobRequeued,
    JobSucceeded,
    StopRequested,
)
from runner.jobs import JobRecord
from runner.pools import Freeze
from runner.reports import BestStep, FailedRung, Phase, UnquantizedPart

AT = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
CLAIMED = JobClaimed(worker="gpu-1:4711", host="gpu-1", device="cpu (2 threads)", attempt=1, at=AT)
Render = Callable[[Iterable[AnyEvent]], list[Message]]


def _lines(message: Message) -> list[str]:
    return message.text.split("\n")


def _of(run: tuple[ChildEvent, ...], *kinds: type[ChildEvent]) -> list[ChildEvent]:
    return [event for event in run if isinstance(event, kinds)]


def test_queued_tells_the_position(render: Render) -> None:
    first, third = render([JobQueued(position=1, pool="cpu")]), render([JobQueued(position=3, pool="cpu")])
    assert [_lines(message)[0] for message in first] == ["Queued in pool `cpu` · position 1 · next to run"]
    assert [_lines(message)[0] for message in third] == ["Queued in pool `cpu` · position 3"]


def test_the_start_tells_the_main_settings_and_marks_what_was_overridden(job: JobRecord) -> None:
    training = job.spec.project.training.model_copy(update={"learning_rate": 5e-4, "gradient_accumulation_steps": 4})
    project = job.spec.project.model_copy(update={"training": training})
    overrides = {"training.learning_rate": "5e-4", "training.optim": "<adam>"}
    spec = job.spec.model_copy(update={"project": project, "overrides": overrides})
    stored = StoredEvent(seq=1, attempt=0, event=JobQueued(position=1, pool="cpu"))
    message = render_milestone(Story(job.model_copy(update={"spec": spec})), stored)
    assert message is not None
    assert _lines(message)[1] == (
        "*Settings* *learning_rate 0.0005* (override) · num_train_epochs 3 · effective batch 32 rows (8 x 4) · r 16 · "
        "lora_alpha 32 · asked for 4-bit quantization · *optim &lt;adam&gt;* (override)"
    )


@pytest.mark.parametrize(
    ("resume", "told"), [(True, "that goes on from its newest checkpoint"), (False, "that begins again")]
)
def test_queued_says_what_a_retry_repeats(job: JobRecord, *, resume: bool, told: str) -> None:
    again = job.model_copy(update={"retry_of": "demo-aaaaa", "resume": resume})
    stored = StoredEvent(seq=1, attempt=0, event=JobQueued(position=1, pool="cpu"))
    message = render_milestone(Story(again), stored)
    assert message is not None
    assert _lines(message)[1] == f"A retry of `demo-aaaaa` {told}"


def test_queued_says_plainly_why_a_job_does_not_start(job: JobRecord) -> None:
    stored = StoredEvent(seq=1, attempt=0, event=JobQueued(position=1, pool="cpu"))
    freeze = Freeze(reason="new driver", by="U0ANN", at=AT)
    message = render_milestone(Story(job), stored, pool_is_served=False, frozen=freeze, kept="Its GPU is busy.")
    assert message is not None
    assert _lines(message)[3] == "⚠️ Its GPU is busy."
    assert _lines(message)[1] == "⛔ Frozen by <@U0ANN>, nothing new starts: new driver"
    assert _lines(message)[2] == (
        "⚠️ No worker serves this pool right now. The job waits until one does: `python -m runner worker --pool cpu`"
    )


def test_the_version_report_is_a_table_with_a_classic_form(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    (message,) = render(_of(good_run, VersionsReported))
    head = section("*Versions* · stack `current` · 1 of 2 differ from what is tested")
    foot = context(
        "Python 3.11.7 · cpu (2 threads)\n"
        "⚠️ Worked around: peft &lt; 0.21.2. It is old. We wait. <https://example.com/1|Upstream>"
    )
    table = {
        "type": "table",
        "rows": [
            [{"type": "raw_text", "text": text} for text in row]
            for row in (
                ("Library", "Installed", "Verdict"),
                ("transformers", "5.23.0", "as tested"),
                ("peft", "0.21.1", "patch differs from 0.21.2"),
            )
        ],
        "column_settings": [{"is_wrapped": True}] * 3,
    }
    drawn = (
        "```\n"
        "transformers\n"
        "  Installed: 5.23.0 · Verdict: as tested\n"
        "peft\n"
        "  Installed: 0.21.1\n"
        "  Verdict: patch differs from 0.21.2\n"
        "```"
    )
    assert (head, table, foot) == message.blocks
    assert (head, section(drawn), foot) == message.classic


def test_base_model_tokenizer_and_config_are_one_reply(
    render: Render, good_run: tuple[ChildEvent, ...], job: JobRecord
) -> None:
    (message,) = render(good_run[:6])[1:]
    assert _lines(message) == [
        f"*Base model* `{job.spec.project.base_model}` · a folder on the host",
        "*Tokenizer* `LlamaTokenizerFast` · 32,000 entries · pad `&lt;pad&gt;`, its own",
        "*Config* `LlamaConfig` · model_type `llama` from config.json · `LlamaForCausalLM`",
    ]


def test_a_hub_model_is_told_with_its_commit(render: Render, good_run: tuple[ChildEvent, ...], job: JobRecord) -> None:
    config = good_run[5]
    assert isinstance(config, ConfigLoaded)
    (message,) = render([config.model_copy(update={"revision": "0123abcd"})])
    assert _lines(message)[0] == f"*Base model* `{job.spec.project.base_model}` · commit `0123abcd`"


def test_a_tokenizer_workaround_is_told(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    tokenizer, config = good_run[3], good_run[5]
    assert isinstance(tokenizer, TokenizerLoaded)
    (message,) = render([tokenizer.model_copy(update={"workaround": "transformers <4.57.3>"}), config])
    assert _lines(message)[-1] == "⚠️ Worked around: transformers &lt;4.57.3&gt;"


def test_fallen_rungs_are_announced_in_the_original_words(render: Render) -> None:
    failed = FailedRung(rung="4bit", error_class="RuntimeError", reason="shape <1>")
    eight = FailedRung(rung="8bit", error_class="RuntimeError", reason="raw & bare")
    messages = render([RungFailed(failed=failed, next_rung="8bit"), RungFailed(failed=eight, next_rung="none")])
    assert [_lines(message) for message in messages] == [
        ["⚠️ 4-bit quantization failed with shape &lt;1&gt;, trying 8-bit quantization...", "`RuntimeError`"],
        ["⚠️ 8-bit quantization also failed, trying without quantization... (raw &amp; bare)", "`RuntimeError`"],
    ]


def test_the_load_receipt_counts_what_is_really_quantized(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    (message,) = render(_of(good_run, ModelLoaded))
    text = (
        "✅ Model loaded with 4-bit quantization, config protected\n"
        "28 of 29 linear modules are really 4-bit, 81 % of the parameters · 12.3 MB of weights · bfloat16 on cpu\n"
        "Probe: loss 5.123, gradient norm 0.3123 · loaded in 2.4 s"
        " · loading took 21.5 MB of memory at its peak, 14.3 MB of it are kept\n"
        "The config guard turned away 1 dict assignment"
    )
    assert Message(text, (section(text),)) == message


def test_a_load_receipt_on_a_lower_rung_says_what_was_asked_and_what_failed(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    (loaded,) = _of(good_run, ModelLoaded)
    assert isinstance(loaded, ModelLoaded)
    failed = FailedRung(rung="4bit", error_class="RuntimeError", reason="shape")
    update = {"rung": "none", "failed": (failed, failed.model_copy(update={"rung": "8bit", "error_class": "<X>"}))}
    (message,) = render([loaded.model_copy(update={"receipt": loaded.receipt.model_copy(update=update)})])
    assert _lines(message)[3] == (
        "Asked for 4-bit quantization; failed: 4-bit quantization (`RuntimeError`), 8-bit quantization (`&lt;X&gt;`)"
    )


def test_the_load_receipt_says_how_many_processes_hold_the_model(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    (loaded,) = [event for event in good_run if isinstance(event, ModelLoaded)]
    (message,) = render([loaded.model_copy(update={"receipt": loaded.receipt.model_copy(update={"processes": 4})})])
    assert _lines(message)[1].endswith(" · bfloat16 on cpu · in each of 4 processes")


def test_a_rung_that_the_table_of_failures_knows_is_explained_below_its_announcement(render: Render) -> None:
    failed = FailedRung(
        rung="4bit", error_class="RuntimeError", reason="shape", failure_class="weight-shape", meaning="Packed <so>."
    )
    (message,) = render([RungFailed(failed=failed, next_rung="8bit")])
    assert _lines(message) == [
        "⚠️ 4-bit quantization failed with shape, trying 8-bit quantization...",
        "`RuntimeError` (`weight-shape`): Packed &lt;so&gt;.",
    ]


def test_a_rung_that_fails_again_in_another_attempt_is_told_once(render: Render) -> None:
    failed = FailedRung(rung="4bit", error_class="RuntimeError", reason="shape", held_bytes=1)
    again = failed.model_copy(update={"held_bytes": 2})
    assert len(render([RungFailed(failed=failed, next_rung="8bit"), RungFailed(failed=again, next_rung="8bit")])) == 1


def test_what_escaped_quantization_is_warned_about(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    (loaded,) = _of(good_run, ModelLoaded)
    assert isinstance(loaded, ModelLoaded)
    experts = UnquantizedPart(name="layers.*.<experts>", kind="escaped", tensors=2, parameters=3_000_000)
    update = {"unquantized": (experts,), "stored_quantization": "bitsandbytes, 4-bit", "guard_interceptions": 0}
    (message,) = render([loaded.model_copy(update={"receipt": loaded.receipt.model_copy(update=update)})])
    stored, warning = _lines(message)[-2:]
    assert stored == "The base model's files are stored quantized: `bitsandbytes, 4-bit`"
    assert warning.startswith("⚠️ 75% of the parameters that 4-bit quantization is meant for stay unquantized: ")
    assert "layers.*.&lt;experts&gt;" in warning


def test_what_only_moves_the_plan_makes_no_reply(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    quiet = _of(good_run, PhaseStarted, CheckpointSaved, MetricsLogged, RunSucceeded)
    assert quiet
    assert render([*quiet, StopRequested(by="U0ANN")]) == []


def test_the_end_tells_loss_time_and_where_the_adapter_is(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    last = good_run[-1]
    assert isinstance(last, RunSucceeded)
    end = JobSucceeded(summary=last.summary, adapter_path="/out/demo/adapter", at=AT + timedelta(seconds=42))
    assert _lines(render([CLAIMED, end])[-1]) == [
        "✅ *Succeeded* · 42 s from claim to published adapter, 15 s of it training",
        (
            "Training loss 4.812 → 0.0211 in 120 steps · 826.0 MB of memory at most"
            " · 1 dict assignment over the config turned away"
        ),
        "Adapter: `/out/demo/adapter` on host `gpu-1`",
    ]


def test_the_end_tells_of_an_early_stop_and_whose_adapter_was_taken(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    last = good_run[-1]
    assert isinstance(last, RunSucceeded)
    summary = last.summary.model_copy(
        update={"steps": 60, "stopped_early_of": 120, "adapter_step": 40, "guard_interceptions": 0, "peak_bytes": None}
        | {"best": BestStep(step=40, loss=1.5, last_loss=2.0)}
    )
    end = JobSucceeded(summary=summary, adapter_path="/out/demo/adapter", at=AT)
    assert _lines(render([CLAIMED, end])[-1])[1] == (
        "Training loss 4.812 → 0.0211 in 60 steps of 120, stopped early"
        " · the adapter is that of step 40, with the lowest held-out loss, 1.5"
    )


def test_a_failure_tells_code_message_what_to_do_and_where_its_log_is(render: Render, job: JobRecord) -> None:
    failure = JobFailed(code="model-not-found", message="No model in <here>.", hint="Put it & try again.")
    assert _lines(render([CLAIMED, failure])[-1]) == [
        "❌ *Failed* · `model-not-found`",
        "No model in &lt;here&gt;.",
        "What to do: Put it &amp; try again.",
        f"Its log, on host `gpu-1`: `python -m runner logs {job.id}`",
    ]


def test_a_failure_that_no_host_has_had_has_no_log(render: Render) -> None:
    failure = JobFailed(code="model-not-found", message="No model.", hint="Put it there.")
    assert _lines(render([failure])[-1])[-1] == "What to do: Put it there."


def test_a_cancelled_job_tells_who_when_and_what_is_left(render: Render) -> None:
    ended = JobCancelled(by="U0ANN", step=40, checkpoint="/runs/checkpoint-40")
    assert _lines(render([CLAIMED, ended])[-1]) == [
        "*Cancelled* by <@U0ANN> at step 40",
        "Checkpoint: `/runs/checkpoint-40` on host `gpu-1`",
    ]
    assert render([JobCancelled(by="ann")])[-1].text == "*Cancelled* by ann before it began to train"


def test_a_lost_host_is_told_once_with_the_step_it_resumes_from(render: Render) -> None:
    requeued = JobRequeued(reason="host-lost", host="gpu-1", phase=Phase.TRAINING, step=80)
    assert render([CLAIMED, requeued])[-1].text == (
        "⚠️ The worker on host `gpu-1` was lost in phase training. The job is back in the queue and resumes from the "
        "checkpoint of step 80 once a worker claims it."
    )
    assert render([CLAIMED, JobRequeued(reason="worker-stopped", host="gpu-1")])[-1].text == (
        "The worker on host `gpu-1` was stopped. The job is back in the queue and starts again, "
        "from a checkpoint if its host left one, once a worker claims it."
    )


def test_a_host_that_leaves_a_job_to_others_is_one_line_until_nobody_is_left(render: Render) -> None:
    declined = JobDeclined(
        reason="data-differs", host="gpu-1", message="data/a.jsonl has other content: `git pull` there."
    )
    assert render([CLAIMED, declined])[-1].text == (
        "Host `gpu-1` leaves the job to others: data/a.jsonl has other content: `git pull` there."
    )
    assert render([CLAIMED, declined.model_copy(update={"others": False})])[-1].text.splitlines()[1] == (
        "⚠️ No other worker of pool `cpu` is left. The job waits for a host whose data match."
    )


def test_where_an_attempt_begins_is_told(render: Render) -> None:
    chosen = CheckpointChosen(step=80, newest_step=80, newest_host="gpu-1")
    assert render([CLAIMED, chosen])[-1].text == "Resumes from the checkpoint of step 80"
    assert render([CLAIMED, chosen.model_copy(update={"step": 40})])[-1].text == (
        "⚠️ The checkpoint of step 80 lies on host `gpu-1`, which this host does not see: the job goes on from that of "
        "step 40"
    )
    assert render([CLAIMED, chosen.model_copy(update={"step": 0})])[-1].text.endswith("starts again from the beginning")


def test_a_second_attempt_repeats_nothing_that_the_thread_says_already(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    training = next(index for index, event in enumerate(good_run) if isinstance(event, TrainingStarted))
    resumed = TrainingStarted(total_steps=120, resumed_from_step=80, trainable_parameters=54_321)
    second = CLAIMED.model_copy(update={"attempt": 2, "host": "gpu-2"})
    lost = JobRequeued(reason="host-lost", host="gpu-1")
    once = render([CLAIMED, *good_run[: training + 1]])
    both = render([CLAIMED, *good_run[: training + 1], lost, second, *good_run[:training], resumed])
    assert once == both[: len(once)]
    assert [message.text[: len(start)] for message, start in zip(both[len(once) :], _STARTS, strict=True)] == [
        "⚠️ The worker on host `gpu-1` was lost.",
        "Claimed on host `gpu-2`",
    ]


_STARTS = ("⚠️ The worker on host `gpu-1` was lost.", "Claimed on host `gpu-2`")


def test_a_second_attempt_on_other_versions_tells_them(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    (report,) = _of(good_run, VersionsReported)
    other = report.model_copy(update={"device": "NVIDIA H100"})
    assert len(render([report, report])) == 1
    assert len(render([report, other])) == 2


def test_a_halved_batch_is_told(render: Render, good_run: tuple[ChildEvent, ...]) -> None:
    halved = BatchHalved(
        step=3,
        reason="can't allocate memory",
        former_batch_size=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        resumed_from_step=2,
    )
    run = [*_of(good_run, TrainingStarted), halved, *_of(good_run, TrainingStarted)]

    assert _lines(render(run)[-1]) == [
        (
            "⚠️ per_device_train_batch_size 8 ran out of memory at step 3, trying 4 with gradient_accumulation_steps 2, "
            "from the checkpoint of step 2... (still 8 rows a step)"
        )
    ]
