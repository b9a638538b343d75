import pytest

from runner.spec import DatasetShare
from runner.training.data.draw import DrawnRows, draw_rows

ALL = DatasetShare(dataset_id=1)


def draw(
    *shares: DatasetShare, available: int = 100, held_out: float = 0.0, seed: int = 42, trait: str | None = None
) -> list[DrawnRows]:
    named = [(trait or f"trait {number}", share) for number, share in enumerate(shares)]
    rows = {share.dataset_id: available for share in shares}
    return draw_rows(named, rows, held_out_percentage=held_out, seed=seed)


@pytest.mark.parametrize(
    ("available", "percentage", "drawn"),
    [(10, 100, 10), (10, 50, 5), (7, 50, 4), (5, 50, 3), (1000, 0.01, 1), (3, 1, 1)],
)
def test_a_percentage_is_rounded_to_at_least_one_row(available: int, percentage: float, drawn: int) -> None:
    [rows] = draw(DatasetShare(dataset_id=1, percentage=float(percentage)), available=available)

    assert len(rows.trained) == drawn
    assert rows.trained == sorted(set(rows.trained))


def test_a_larger_percentage_keeps_the_rows_of_a_smaller_one() -> None:
    [small] = draw(DatasetShare(dataset_id=1, percentage=20.0))
    [large] = draw(DatasetShare(dataset_id=1, percentage=60.0))

    assert set(small.trained) < set(large.trained)


def test_another_seed_or_dataset_draws_other_rows() -> None:
    share = DatasetShare(dataset_id=1, percentage=20.0)
    draws = [*draw(share), *draw(share, seed=43), *draw(DatasetShare(dataset_id=2, percentage=20.0))]

    assert len({tuple(rows.trained) for rows in draws}) == 3


@pytest.mark.parametrize(("percentage", "max_rows", "drawn"), [(50.0, 20, 20), (50.0, 80, 50), (100.0, 1, 1)])
def test_max_rows_is_a_limit_and_never_a_goal(percentage: float, max_rows: int, drawn: int) -> None:
    [rows] = draw(DatasetShare(dataset_id=1, percentage=percentage, max_rows=max_rows))
    [unlimited] = draw(DatasetShare(dataset_id=1, percentage=percentage))

    assert len(rows.trained) == drawn
    assert set(rows.trained) <= set(unlimited.trained)


def test_held_out_rows_come_first_from_those_that_nobody_draws() -> None:
    share = DatasetShare(dataset_id=1, percentage=80.0)
    [without], [rows] = draw(share), draw(share, held_out=10.0)

    assert rows.trained == without.trained
    assert len(rows.held_out) == 8
    assert not set(rows.trained) & set(rows.held_out)


def test_where_all_rows_are_drawn_training_gives_up_just_what_is_held_out() -> None:
    [rows] = draw(ALL, held_out=10.0)

    assert (len(rows.trained), len(rows.held_out)) == (90, 10)
    assert sorted(rows.trained + rows.held_out) == list(range(100))


def test_a_row_held_out_for_one_trait_is_trained_on_in_no_other() -> None:
    small, large = draw(DatasetShare(dataset_id=1, percentage=40.0), ALL, held_out=10.0)

    assert (len(small.held_out), len(large.held_out)) == (4, 10)
    assert (len(small.trained), len(large.trained)) == (40, 90)
    assert not set(small.trained + large.trained) & set(small.held_out + large.held_out)


@pytest.mark.parametrize(("available", "held_out"), [(9, 0), (10, 1), (11, 1)])
def test_from_ten_rows_on_at_least_one_is_held_out(available: int, held_out: int) -> None:
    [rows] = draw(ALL, available=available, held_out=1.0)

    assert len(rows.held_out) == held_out
    assert len(rows.trained) == available - held_out


def test_a_share_may_hold_out_more_or_nothing() -> None:
    shares = [
        DatasetShare(dataset_id=1, held_out_percentage=0.0),
        DatasetShare(dataset_id=2, held_out_percentage=30.0),
        DatasetShare(dataset_id=3),
    ]

    assert [len(rows.held_out) for rows in draw(*shares, held_out=5.0)] == [0, 30, 5]


def test_a_trait_holds_out_two_hundred_rows_at_most() -> None:
    [alone] = draw(ALL, available=10_000, held_out=5.0)
    first, second = draw(
        DatasetShare(dataset_id=1),
        DatasetShare(dataset_id=2, percentage=50.0),
        available=10_000,
        held_out=5.0,
        trait="t",
    )

    assert len(alone.held_out) == 200
    assert (len(first.held_out), len(second.held_out)) == (133, 66)
    assert len(first.trained) == 10_000 - 133
