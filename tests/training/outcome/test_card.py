"""Parts of the card that a small run does not show."""

from __future__ import annotations

from runner.events import Evaluated
from runner.reports import Resolved, Sample, TraitLoss
from runner.training.outcome.card import _held_out, _samples, _settings


def test_settings_that_somebody_decided_are_a_table_and_the_defaults_a_sentence() -> None:
    shown = _settings(
        [
            Resolved(name="r", value="8", origin="override"),
            Resolved(name="lora_alpha", value="32", origin="default"),
            Resolved(name="max_steps", value="6", origin="project"),
            Resolved(name="bias", value="none", origin="default"),
            Resolved(name="device", value="cpu", origin="host"),
        ]
    )

    assert shown.splitlines() == [
        "## Settings",
        "",
        "| setting | value | decided by |",
        "| --- | --- | --- |",
        "| r | 8 | override at the start |",
        "| max\\_steps | 6 | project file |",
        "| device | cpu | this host |",
        "",
        "At their defaults: lora\\_alpha 32, bias none.",
    ]


def test_a_trait_that_got_worse_is_marked() -> None:
    worse = TraitLoss(trait_type="tone", loss=3.0, rows=4, tokens=9, before=2.0, regressed=True)
    better = TraitLoss(trait_type="sums", loss=1.0, rows=4, tokens=9, before=2.0)

    shown = _held_out(Evaluated(when="after", held_out=(worse, better)), ["facts"])

    assert "| tone | 4 | 9 | 2 | 3 | ⚠️ worse than the base model |" in shown
    assert "| sums | 4 | 9 | 2 | 1 |  |" in shown
    assert "Nothing was held out of facts," in shown


def test_a_sample_whose_prompt_was_seen_in_training_is_told_from_one_that_was_not() -> None:
    before, after = (
        Evaluated(when=when, samples=(Sample(prompt="2+3=", completion=answer), Sample(prompt="Hi", completion=answer)))
        for when, answer in (("before", "x"), ("after", "5"))
    )

    assert _samples(before, after, ("2+3=",)).splitlines()[2:] == [
        "| prompt | base | adapter | seen in training |",
        "| --- | --- | --- | --- |",
        "| 2+3= | x | 5 | yes |",
        "| Hi | x | 5 | no |",
        "",
        "Where a prompt was seen in training, the answer may be remembered.",
    ]
