from __future__ import annotations

import io

import pytest
from rich.console import Console

from runner.console import TerminalStory, describe_event, duration_text, printable
from runner.events import (
    AdapterSaved,
    AdapterVerified,
    ChildEvent,
    DataMixed,
    Evaluated,
    LossEvaluated,
    MetricsLogged,
    ModelLoaded,
    PhaseStarted,
    RungFailed,
    RunInterrupted,
    RunSucceeded,
    TrainingStarted,
)
from runner.reports import (
    ExactMatch,
    FailedRung,
    Phase,
    RunSummary,
    Sample,
    TraitLoss,
    UnquantizedPart,
)
from tests.examples import RECEIPT, SHARE

FAILED = FailedRung(
    rung="4bit",
    error_class="RuntimeError",
    reason="RuntimeError: no kernel",
    failure_class="missing-kernel",
    meaning="No kernel.",
)
ON_8_BITS = RECEIPT.model_copy(update={"rung": "8bit", "failed": (FAILED,)})
PARTLY_QUANTIZED = ON_8_BITS.model_copy(
    update={
        "unquantized": (UnquantizedPart(name="layers.*.experts", kind="escaped", tensors=2, parameters=2_000_000),),
        "stored_quantization": "bitsandbytes, 8-bit",
    }
)
UNMEASURED = ON_8_BITS.model_copy(update={"load_peak_bytes": None, "steady_bytes": None, "processes": 2})
METRICS = MetricsLogged(
    step=30, total_steps=180, epoch=1.5, loss=2.3456, learning_rate=1e-3, tokens_per_s=1234.5, eta_s=250.2
)
STARTED = TrainingStarted(total_steps=180, resumed_from_step=20, trainable_parameters=409600)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (PhaseStarted(phase=Phase.MODEL), []),
        (AdapterSaved(path="/x", size_bytes=41_234), ["Adapter saved: 41.2 kB"]),
        (
            AdapterVerified(max_difference=0.03, base_difference=2, duration_s=3.14),
            [
                "Adapter verified in a fresh process (3.1 s)",
                "  its logits differ from the trained model's by at most 0.03; they differ from the base model's by 2",
            ],
        ),
        (
            AdapterVerified(max_difference=0.0, base_difference=2.5, duration_s=3.14),
            [
                "Adapter verified in a fresh process (3.1 s)",
                "  its logits are exactly the trained model's; they differ from the base model's by 2.5",
            ],
        ),
        (
            RungFailed(failed=FAILED, next_rung="8bit"),
            [
                "⚠️ 4-bit quantization failed with RuntimeError: no kernel, trying 8-bit quantization...",
                "  RuntimeError (missing-kernel): No kernel.",
            ],
        ),
        (
            ModelLoaded(receipt=PARTLY_QUANTIZED),
            [
                "✅ Model loaded with 8-bit quantization, config protected",
                "  28 of 29 linear modules quantized, 81 % of the parameters, 12.3 MB, bfloat16 on cpu, 2.4 s",
                "  loading took 21.5 MB of memory at its peak, 14.3 MB of it are kept",
                "  the base model's files are stored quantized: bitsandbytes, 8-bit",
                f"⚠️ {PARTLY_QUANTIZED.warning}",
            ],
        ),
        (
            ModelLoaded(receipt=UNMEASURED),
            [
                "✅ Model loaded with 8-bit quantization, config protected",
                (
                    "  28 of 29 linear modules quantized, 81 % of the parameters, 12.3 MB, bfloat16 on cpu, 2.4 s, "
                    "in each of 2 processes"
                ),
            ],
        ),
        (
            DataMixed(
                shares=(
                    SHARE.model_copy(update={"percentage": 50.0, "max_rows": 60, "held_out_rows": 5, "rows_used": 50}),
                ),
                rows=50,
                longest_tokens=26,
                truncated_rows=2,
                warnings=("one-digit addition: 2 of 50 rows (4 %) cut at max_length.",),
            ),
            [
                "Data: 50 rows, the longest of 26 tokens",
                "  arithmetic / one-digit addition: 50 of 100 rows (50 %, at most 60), 5 held out",
                "  trained tokens: arithmetic 1234 (100 %)",
                "  ⚠️ one-digit addition: 2 of 50 rows (4 %) cut at max_length.",
            ],
        ),
        (STARTED, ["Training: 180 steps, 409,600 trainable parameters, going on from step 20"]),
        (
            LossEvaluated(step=40, total_steps=180, loss=2.5, best_step=40, best_loss=2.5),
            ["  step 40/180  held-out loss 2.500, the best so far"],
        ),
        (
            LossEvaluated(step=60, total_steps=180, loss=2.6, best_step=40, best_loss=2.5, stops=True),
            [
                (
                    "  step 60/180  held-out loss 2.600, best 2.500 at step 40; it has not become better for long "
                    "enough, training stops"
                ),
            ],
        ),
        (METRICS, ["  step 30/180  loss 2.346  1,234 tokens/s  4 min 10 s left"]),
        (
            Evaluated(
                when="after",
                samples=(Sample(prompt="What is 3 + 4?", completion="7"),),
                exact_match=(ExactMatch(dataset_id=1, dataset_name="sums", correct=99, total=100),),
                held_out=(
                    TraitLoss(trait_type="sums", loss=1.5, rows=5, tokens=20, before=7.04321),
                    TraitLoss(trait_type="tone", loss=2.5, rows=5, tokens=60, before=2.0, regressed=True),
                ),
            ),
            [
                "Answers after training:",
                "  'What is 3 + 4?' → '7'",
                "Exact match after training: sums: 99 of 100 (99 %)",
                "Held-out loss after training: sums: 7.043 → 1.5 (5 rows, 20 tokens)",
                "⚠️ Held-out loss after training: tone: 2 → 2.5 (5 rows, 60 tokens), worse than the base model",
            ],
        ),
        (RunInterrupted(step=0, checkpoint=None), ["Stopped at step 0, without a checkpoint"]),
        (
            RunSucceeded(
                summary=RunSummary(
                    rung="4bit",
                    steps=180,
                    loss_first=7.041,
                    loss_last=0.0123,
                    train_s=20,
                    duration_s=41.6,
                    guard_interceptions=0,
                    peak_bytes=1_234_567_890,
                ),
                adapter_path="/x",
            ),
            ["✅ 180 steps in 42 s, training loss 7.041 → 0.0123, 1,235 MB of memory at most"],
        ),
    ],
)
def test_an_event_reads_as(event: ChildEvent, expected: list[str]) -> None:
    assert describe_event(event) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")]
)
def test_durations_read_as_people_say_them(seconds: float, expected: str) -> None:
    assert duration_text(seconds) == expected


def test_control_characters_lose_their_power() -> None:
    assert printable("a\x1b[2Jb\rc→✅") == "a�[2Jb�c→✅"


def test_on_a_terminal_progress_is_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with TerminalStory(console) as story:
        story.show(STARTED)
        story.show(METRICS)
        story._progress.refresh()

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "30/180" in text
    assert "tokens/s" not in text


def test_an_answer_that_may_be_remembered_is_marked_after_training() -> None:
    console = Console(file=io.StringIO(), width=200)
    samples = (Sample(prompt="2+3=", completion="5"), Sample(prompt="Hi", completion="Ho"))
    mixed = DataMixed(shares=(), rows=1, longest_tokens=4, truncated_rows=0, seen_prompts=("2+3=",))
    with TerminalStory(console) as story:
        story.show(mixed)
        story.show(Evaluated(when="before", samples=samples))
        story.show(Evaluated(when="after", samples=samples))

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[-6:] == [
        "Answers before training:",
        "  '2+3=' → '5'",
        "  'Hi' → 'Ho'",
        "Answers after training:",
        "  '2+3=' → '5'  (prompt seen in training, so the answer may be remembered)",
        "  'Hi' → 'Ho'",
    ]
