from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from runner.errors import DatasetError
from runner.spec import DatasetShare, RunSpec
from runner.training.data import draw_rows, mix_data

MakeSpec = Callable[..., RunSpec]
TEXTS = [{"text": f"The team trains model {number}."} for number in range(10)]
TALKS = [
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": f"Good morning, {number}"}]}
    for number in range(10)
]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize(
    ("available", "percentage", "drawn"),
    [(10, 100, 10), (10, 50, 5), (7, 50, 4), (5, 50, 3), (1000, 0.01, 1), (3, 1, 1)],
)
def test_a_percentage_is_rounded_to_at_least_one_row(available: int, percentage: float, drawn: int) -> None:
    rows = draw_rows(available, DatasetShare(dataset_id=1, percentage=float(percentage)), seed=42)

    assert len(rows) == drawn
    assert rows == sorted(set(rows))


def test_a_larger_percentage_keeps_the_rows_of_a_smaller_one() -> None:
    small = draw_rows(100, DatasetShare(dataset_id=1, percentage=20.0), seed=42)
    large = draw_rows(100, DatasetShare(dataset_id=1, percentage=60.0), seed=42)

    assert set(small) < set(large)


def test_another_seed_or_dataset_draws_other_rows() -> None:
    share = DatasetShare(dataset_id=1, percentage=20.0)
    draws = [
        draw_rows(100, share, seed=42),
        draw_rows(100, share, seed=43),
        draw_rows(100, DatasetShare(dataset_id=2, percentage=20.0), seed=42),
    ]

    assert len({tuple(draw) for draw in draws}) == 3


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


def test_rows_that_lose_their_whole_answer_are_dropped_and_counted(
    tokenizer: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    rows = [{"prompt": "What is 3 + 4?", "completion": "7"}, {"prompt": "What is that? " * 20, "completion": "A model"}]

    mix = mix_data(make_spec(tmp_path, rows, training={"max_length": 16}), tokenizer, tmp_path)

    assert (mix.event.rows, mix.event.dropped_rows) == (1, 1)


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

    with pytest.raises(DatasetError, match=r"[Rr]ow 2 of .*rows-1\.jsonl"):
        mix_data(make_spec(tmp_path, rows), tokenizer, tmp_path)


def test_a_changed_data_file_has_another_fingerprint(tokenizer: Any, make_spec: MakeSpec, tmp_path: Path) -> None:
    first = mix_data(make_spec(tmp_path, TEXTS), tokenizer, tmp_path).fingerprints
    second = mix_data(make_spec(tmp_path, TEXTS[1:]), tokenizer, tmp_path).fingerprints

    assert first.keys() == second.keys() == {1}
    assert first != second
