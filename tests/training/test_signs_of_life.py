"""Signs of life of several processes, in a file that all have mapped."""

import tempfile

from runner.training.signs_of_life import SignsOfLife, size_bytes


def test_whoever_moves_is_heard_by_all() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(size_bytes(2))
        first, second = (SignsOfLife(file.fileno(), rank, 2) for rank in (0, 1))

        first.give()
        second.give()
        second.give()

        assert first.heard() == second.heard() == 3


def test_one_process_hears_itself() -> None:
    alone = SignsOfLife()
    alone.give()

    assert alone.heard() == 1
