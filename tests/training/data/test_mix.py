from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from runner.errors import DatasetError
from runner.spec import RunSpec
from runner.training.data.draw import draw_rows
from runner.training.data.mix import mix_data

MakeSpec = Callable[..., RunSpec]
TEXTS = [{"text": f"The team trains model {number}."} for number in range(10)]
TALKS = [
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": f"Good morning, {number}"}]}
    for number in range(10)
]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def test_a_draw_does_not_depend_on_the_other_datasets(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    alone = mix_data(make_spec(tmp_path / "a", addition, percentages=[30]), tokenizer, tmp_path / "a")
    beside = mix_data(make_spec(tmp_path / "b", addition, TEXTS, percentages=[30, 50]), tokenizer, tmp_path / "b")

    assert beside.input_ids[: len(alone.input_ids)] == alone.input_ids


def test_all_formats_mix_and_are_counted_by_trait(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(tmp_path, addition, TALKS, TEXTS, percentages=[50, 20, 100])

    mix = mix_data(spec, tokenizer, tmp_path)

    assert [(share.trait_type, share.rows_available, share.rows_used) for share in mix.event.shares] == [
        ("trait 1", 100, 50),
        ("trait 2", 10, 2),
        ("trait 3", 10, 10),
    ]
    assert mix.event.rows == len(mix.input_ids) == len(mix.labels) == 62
    trained = [sum(label != -100 for label in labels[1:]) for labels in mix.labels]
    assert [share.trained_tokens for share in mix.event.shares] == [
        sum(trained[:50]),
        sum(trained[50:52]),
        sum(trained[52:]),
    ]
    assert all(labels[-1] == tokenizer.eos_token_id for labels in mix.labels)


def test_prompts_are_asked_as_a_chat_only_where_all_rows_are_chats(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    talks = mix_data(make_spec(tmp_path / "a", TALKS), tokenizer, tmp_path / "a")
    mixed = mix_data(make_spec(tmp_path / "b", TALKS, TEXTS), tokenizer, tmp_path / "b")

    assert (talks.as_chat, mixed.as_chat) == (True, False)


def test_rows_are_cut_at_max_length_and_counted(tokenizer: Any, make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = [{"text": "Thank you"}, {"text": "Thank you, that is all. " * 20}]

    mix = mix_data(make_spec(tmp_path, rows, training={"max_length": 16}), tokenizer, tmp_path)

    assert mix.event.truncated_rows == 1
    assert mix.event.longest_tokens > 16
    assert max(map(len, mix.input_ids)) == 16
    assert mix.event.shares[0].total_tokens == sum(map(len, mix.input_ids))
    [warning] = mix.event.warnings
    assert warning == (
        "rows 1: 1 of 2 rows (50 %) cut at max_length (16 tokens), so they do not teach where to end. Raise "
        f"training.max_length (the longest row has {mix.event.longest_tokens} tokens), or shorten the rows."
    )


def test_the_share_of_all_rows_is_a_hundred_per_cent(tokenizer: Any, make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = [{"text": f"Thank you, that is all {number}. " * 20} for number in range(3)]

    [warning] = mix_data(make_spec(tmp_path, rows, training={"max_length": 16}), tokenizer, tmp_path).event.warnings

    assert warning.startswith("rows 1: 3 of 3 rows (100 %) cut")


def test_rows_that_lose_their_whole_answer_are_dropped_and_counted(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = [{"prompt": "What is 3 + 4?", "completion": "7"}, {"prompt": "What is that? " * 20, "completion": "A model"}]

    mix = mix_data(make_spec(tmp_path, rows, training={"max_length": 16}), tokenizer, tmp_path)

    assert (mix.event.rows, mix.event.dropped_rows) == (1, 1)
    [warning] = mix.event.warnings
    assert warning == (
        "rows 1: 1 of 2 rows (50 %) left out, because max_length (16 tokens) leaves nothing of the answer. Raise "
        f"training.max_length; the longest row has {mix.event.longest_tokens} tokens."
    )


def test_tokens_are_counted_by_trait_and_as_a_share_of_all(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    mix = mix_data(make_spec(tmp_path, addition, TEXTS), tokenizer, tmp_path)

    sums, texts = mix.event.traits
    assert (sums.rows, texts.rows) == (100, 10)
    assert sums.trained_tokens + texts.trained_tokens == sum(
        label != -100 for labels in mix.labels for label in labels[1:]
    )
    assert sums.token_share == pytest.approx(sums.trained_tokens / (sums.trained_tokens + texts.trained_tokens))
    assert mix.event.shares[0].total_tokens == sum(map(len, mix.input_ids[:100]))


def test_a_held_out_row_is_trained_on_in_no_trait(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(tmp_path, addition, evaluation={"held_out_percentage": 10.0})
    first, second = spec.project.traits[0], spec.project.traits[0].model_copy(update={"trait_type": "trait 2"})
    project = spec.project.model_copy(update={"traits": (first, second)})

    mix = mix_data(spec.model_copy(update={"project": project}), tokenizer, tmp_path)

    assert [(rows.trait_type, len(rows.input_ids)) for rows in mix.held_out] == [("trait 1", 10), ("trait 2", 10)]
    trained = {tuple(ids) for ids in mix.input_ids}
    assert not trained & {tuple(ids) for rows in mix.held_out for ids in rows.input_ids}
    assert (mix.event.rows, len(trained), mix.event.repeated_rows, mix.event.duplicate_rows) == (180, 90, 90, 0)
    assert [share.held_out_rows for share in mix.event.shares] == [10, 10]
    [warning] = mix.event.warnings
    assert warning.startswith("90 rows belong to more than one trait")


def test_a_held_out_row_that_stands_in_training_too_is_counted_and_left_out_of_the_loss(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(tmp_path, addition, addition[:50], evaluation={"held_out_percentage": 20.0})

    mix = mix_data(spec, tokenizer, tmp_path)

    trained = {tuple(ids) for ids in mix.input_ids}
    left = sum(len(rows.input_ids) for rows in mix.held_out)
    assert not trained & {tuple(ids) for rows in mix.held_out for ids in rows.input_ids}
    assert mix.event.leaked_rows > 0
    assert left + mix.event.leaked_rows == 20 + 10
    assert left == sum(share.held_out_rows for share in mix.event.shares)
    assert any(f"{mix.event.leaked_rows} rows drawn to be held out" in warning for warning in mix.event.warnings)


def test_rows_that_are_the_same_token_for_token_are_counted(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = [*TEXTS, TEXTS[0], {"text": "The team trains model 0.", "source": "elsewhere"}]

    mix = mix_data(make_spec(tmp_path, rows, TEXTS[1:2]), tokenizer, tmp_path)

    assert (mix.event.rows, mix.event.duplicate_rows, mix.event.repeated_rows) == (13, 3, 0)
    assert any("3 rows in training equal another row" in warning for warning in mix.event.warnings)


def test_a_dataset_too_small_to_hold_rows_out_says_so(tokenizer: Any, make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, TEXTS[:9], evaluation={"held_out_percentage": 5.0})

    mix = mix_data(spec, tokenizer, tmp_path)

    assert (mix.event.rows, mix.held_out) == (9, ())
    assert mix.event.warnings == ("rows 1: 9 rows, too few to hold one out; from 10 rows on there is a held-out loss.",)


def test_a_dataset_without_any_answer_left_names_the_lever(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    rows = [{"prompt": "What is that? " * 20, "completion": "A model"}]

    with pytest.raises(DatasetError) as caught:
        mix_data(make_spec(tmp_path, addition, rows, training={"max_length": 16}), tokenizer, tmp_path)

    assert "rows-2.jsonl" in caught.value.message
    assert "max_length" in caught.value.message
    assert caught.value.hint is not None
    assert "Raise training.max_length" in caught.value.hint


def test_a_malformed_row_is_named_with_file_and_row(tokenizer: Any, make_spec: MakeSpec, tmp_path: Path) -> None:
    rows = [{"prompt": "What is 3 + 4?", "completion": "7"}, {"prompt": "What is 3 + 5?", "completion": 8}]

    with pytest.raises(DatasetError, match=r"rows-1\.jsonl: row 2 \(line 2\)"):
        mix_data(make_spec(tmp_path, rows), tokenizer, tmp_path)


def test_a_changed_data_file_has_another_fingerprint(tokenizer: Any, make_spec: MakeSpec, tmp_path: Path) -> None:
    first = mix_data(make_spec(tmp_path, TEXTS), tokenizer, tmp_path).fingerprints
    second = mix_data(make_spec(tmp_path, TEXTS[1:]), tokenizer, tmp_path).fingerprints

    assert first.keys() == second.keys() == {1}
    assert first != second


def test_held_out_rows_that_max_length_cuts_or_empties_are_counted_by_trait(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    rows = addition[:20]
    settings: dict[str, Any] = {"evaluation": {"held_out_percentage": 20.0}, "training": {"max_length": 16}}
    [trait] = make_spec(tmp_path, rows, **settings).project.traits
    [draw] = draw_rows([("trait 1", trait.datasets[0])], {1: 20}, held_out_percentage=20.0, seed=42)
    emptied, *cut, _ = draw.held_out
    rows[emptied] = {"prompt": "What is that? " * 20, "completion": "A model"}
    for number in cut:
        rows[number] = {"prompt": f"What is {number}?", "completion": "A model. " * 20}

    mix = mix_data(make_spec(tmp_path, rows, **settings), tokenizer, tmp_path)

    [share] = mix.event.shares
    assert (share.held_out_drawn_rows, share.held_out_rows) == (4, 3)
    assert (share.held_out_truncated_rows, share.held_out_dropped_rows) == (3, 1)
    [told] = mix.event.traits
    assert (told.held_out_truncated_rows, told.held_out_dropped_rows) == (3, 1)
    assert (share.truncated_rows, share.dropped_rows) == (0, 0)
    emptied_told, cut_told = mix.event.warnings
    assert emptied_told == (
        "rows 1: 1 of 4 rows (25 %) held out of trait 1 left out of its loss, because max_length (16 tokens) leaves "
        "nothing of the answer. Raise training.max_length."
    )
    assert cut_told == (
        "rows 1: 2 of 4 rows (50 %) held out of trait 1 cut at max_length (16 tokens): its loss knows only their "
        "beginning. Raise training.max_length."
    )


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("What is  3 + 4?\n", True),
        ("What is 3 + 44?", False),
        ("Hello", True),
        ("The team trains", True),
        ("team", False),
    ],
)
def test_a_sample_prompt_that_a_row_trained_on_asks_too_is_told(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]], prompt: str, *, seen: bool
) -> None:
    spec = make_spec(tmp_path, addition, TALKS, TEXTS, evaluation={"prompts": [prompt, "Nobody asks this"]})

    assert mix_data(spec, tokenizer, tmp_path).event.seen_prompts == ((prompt,) if seen else ())


def test_a_sample_prompt_that_only_held_out_rows_ask_is_not_seen_in_training(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    rows = addition[:20]
    spec = make_spec(
        tmp_path,
        rows,
        evaluation={"prompts": [row["prompt"] for row in rows], "held_out_percentage": 20.0},
    )
    [draw] = draw_rows([("trait 1", spec.project.traits[0].datasets[0])], {1: 20}, held_out_percentage=20.0, seed=42)

    mix = mix_data(spec, tokenizer, tmp_path)

    assert mix.event.seen_prompts == tuple(rows[number]["prompt"] for number in draw.trained)
    assert len(draw.trained) == 16
