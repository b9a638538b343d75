"""What a thread says of answers and losses before and after training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from bot.render.message import PHONE_COLUMNS, Message
from runner.events import ChildEvent, DataMixed, Evaluated, LossEvaluated, RunSucceeded
from runner.job_events import AnyEvent, JobSucceeded
from runner.reports import BestStep, ExactMatch, Sample, TraitLoss
from tests.examples import SHARE

AT = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
SUMS = SHARE.model_copy(update={"trait_type": "sums", "percentage": 50.0, "rows_used": 50})
WORDS = SUMS.model_copy(update={"trait_type": "words", "dataset_id": 2, "held_out_rows": 5})
MIXED = DataMixed(shares=(SUMS, WORDS), rows=100, longest_tokens=9, truncated_rows=0)
Render = Callable[[Iterable[AnyEvent]], list[Message]]


def _lines(message: Message) -> list[str]:
    return message.text.split("\n")


def _of(run: tuple[ChildEvent, ...], *kinds: type[ChildEvent]) -> list[ChildEvent]:
    return [event for event in run if isinstance(event, kinds)]


def test_what_was_seen_in_training_is_marked_among_the_sample_prompts(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    (mixed,) = _of(good_run, DataMixed)
    (after,) = (event for event in _of(good_run, Evaluated) if isinstance(event, Evaluated) and event.when == "after")
    samples = (Sample(prompt="2+3=", completion="5"), Sample(prompt="A word " * 9, completion="so " * 40))
    after = after.model_copy(update={"samples": samples})
    told, none, unknown = (
        render([mixed.model_copy(update={"seen_prompts": seen}), after])[1] for seen in (("2+3=",), (), None)
    )
    assert [row[0]["text"] for row in told.blocks[1]["rows"]][1] == "† 2+3="
    assert _lines(told)[-1] == "† Sample prompts: 1 of 2 seen in training, so their answers may be remembered"
    assert _lines(none)[-1] == "Sample prompts: none seen in training"
    assert "seen in training" not in unknown.text
    drawn = told.classic[1]["text"]["text"]
    assert max(map(len, drawn.splitlines())) <= PHONE_COLUMNS


def test_answers_stand_side_by_side_with_those_of_the_base_model(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    before, after = render(_of(good_run, Evaluated))
    assert before.text == "*Before training* · one-digit addition 1 of 55 right (2 %)"
    assert _lines(after)[:2] == [
        "*After training*",
        "one-digit addition: 1 of 55 (2 %) → 55 of 55 right (100 %)",
    ]
    rows = [[cell["text"] for cell in row] for row in after.blocks[1]["rows"]]
    assert rows == [["Prompt", "Before", "After"], ["2+3=", "x", "5"]]


def test_held_out_losses_are_told_before_and_after_and_a_worse_trait_is_marked(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    better = TraitLoss(trait_type="sums", loss=7.04321, rows=1, tokens=4)
    worse = TraitLoss(trait_type="<tone>", loss=2.0, rows=25, tokens=300)
    after = Evaluated(
        when="after",
        held_out=(
            better.model_copy(update={"loss": 1.5, "before": 7.04321}),
            worse.model_copy(update={"loss": 2.5, "before": 2.0, "regressed": True}),
        ),
    )
    end = good_run[-1]
    assert isinstance(end, RunSucceeded)
    done = JobSucceeded(summary=end.summary, adapter_path="/out/demo/adapter", at=AT)
    first, second, last = render([Evaluated(when="before", held_out=(better, worse)), after, done])
    assert first.text == "*Before training* · held-out loss of sums 7.043 · held-out loss of &lt;tone&gt; 2"
    assert _lines(second) == [
        "*After training*",
        "held-out loss of sums: 7.043 → 1.5 on 1 row, 4 tokens",
        "⚠️ held-out loss of &lt;tone&gt;: 2 → 2.5 on 25 rows, 300 tokens · worse than the base model",
    ]
    assert _lines(last)[2] == "⚠️ Worse than the base model on held-out rows: &lt;tone&gt;"


def test_a_held_out_loss_that_moved_less_than_chance_may_is_no_clear_change(render: Render) -> None:
    loss = TraitLoss(trait_type="sums", loss=6.208, before=6.209, rows=1, tokens=3)
    (told,) = render([Evaluated(when="after", held_out=(loss,))])
    assert _lines(told)[-1] == "held-out loss of sums: 6.209 → 6.208 on 1 row, 3 tokens · no clear change"


def test_a_step_that_would_have_been_better_is_named_with_the_setting_that_takes_it(render: Render) -> None:
    over = LossEvaluated(step=120, total_steps=120, loss=5.709, best_step=20, best_loss=3.796)
    about_as_good = over.model_copy(update={"loss": 3.8})
    (told,), (quiet,) = (render([measured, Evaluated(when="after")]) for measured in (over, about_as_good))
    assert _lines(told)[1:] == [
        (
            "⚠️ Overfitted: the held-out loss was lowest at step 20, 3.796, and is 5.709 at the last. "
            "`load_best_model_at_end=true` would take the adapter of that step."
        )
    ]
    assert _lines(quiet) == ["*After training*"]


def test_the_setting_that_takes_a_better_step_warns_of_traits_that_its_loss_says_nothing_of(render: Render) -> None:
    over = LossEvaluated(step=120, total_steps=120, loss=5.709, best_step=20, best_loss=3.796)
    assert _lines(render([MIXED, over, Evaluated(when="after")])[-1])[-1].endswith(
        "would take the adapter of that step, which may know less of sums: nothing is held out there."
    )


def test_the_last_reply_says_that_the_adapter_is_overfitted_unless_that_of_the_best_step_was_taken(
    render: Render, good_run: tuple[ChildEvent, ...]
) -> None:
    end = good_run[-1]
    assert isinstance(end, RunSucceeded)
    best = BestStep(step=20, loss=3.796, last_loss=5.709)
    summaries = [end.summary.model_copy(update={"best": best, "adapter_step": step}) for step in (None, 20)]
    told, quiet = (render([JobSucceeded(summary=one, adapter_path="/out", at=AT)])[0] for one in summaries)
    assert _lines(told)[2] == ("⚠️ Overfitted: the held-out loss was lowest at step 20, 3.796, and is 5.709 at the last")
    assert "Overfitted" not in quiet.text


def test_a_table_of_answers_says_how_much_of_it_was_trained_on_and_which_trait_has_nothing_held_out(
    render: Render,
) -> None:
    after = Evaluated(
        when="after",
        exact_match=(ExactMatch(dataset_id=1, dataset_name="additions", correct=90, total=100),),
        held_out=(TraitLoss(trait_type="words", loss=1.5, before=7, rows=5, tokens=20),),
    )
    assert _lines(render([MIXED, after])[1])[1:] == [
        "additions: 90 of 100 right (90 %) · 50 % trained on",
        "held-out loss of words: 7 → 1.5 on 5 rows, 20 tokens",
        "No rows held out of sums",
    ]
