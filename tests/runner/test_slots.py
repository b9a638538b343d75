"""One worker a device: locks that end with their process, and what they say of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from runner.device import choose_gpus
from runner.errors import UnavailableError, UsageError
from runner.pools import Gpu
from runner.process_identity import ProcessIdentity, boot_id, descends_from
from runner.slots import AttemptNote, Slots, take_slots

L4 = [Gpu(index=index, uuid=f"GPU-a{index}", name="NVIDIA L4", memory_mib=23034) for index in range(3)]


@pytest.fixture
def open_slots() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def take(folder: Path, *gpus: Gpu, worker: str = "w", name: str | None = None, host: str = "host-a") -> Slots:
    return take_slots(folder, host, worker, gpus=gpus, name=name)


def test_a_taken_device_is_refused_with_the_name_of_who_has_it(tmp_path: Path) -> None:
    with closing(take(tmp_path, L4[0], L4[1], worker="first")):
        with pytest.raises(UnavailableError) as caught:
            take(tmp_path, L4[2], L4[1])
        # What it had got by then is free again.
        take(tmp_path, L4[2]).close()

    assert caught.value.code == "device-taken"
    told = f"GPU 1 (NVIDIA L4, GPU-a1) of host host-a is taken by worker first (pid {os.getpid()}, since "
    assert re.fullmatch(rf"{re.escape(told)}\d{{4}}-\d\d-\d\d [\d:]+ UTC\)\.", caught.value.message)


def test_devices_of_another_host_are_other_devices_though_the_folder_is_shared(
    tmp_path: Path, open_slots: ExitStack
) -> None:
    for host in ("host-a", "host-b"):
        open_slots.enter_context(closing(take(tmp_path, L4[0], host=host)))


def test_on_a_cpu_a_name_is_taken_once_and_workers_without_one_are_not_counted(
    tmp_path: Path, open_slots: ExitStack
) -> None:
    for name in ("ann", "bob", None, None):
        open_slots.enter_context(closing(take(tmp_path, name=name)))

    with pytest.raises(UnavailableError, match="The name 'ann' on host host-a is taken by worker w") as caught:
        take(tmp_path, name="ann")

    assert caught.value.code == "name-taken"


def test_a_lock_ends_with_its_process_and_leaves_what_it_worked_on(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from runner.slots import AttemptNote, take_slots\n"
        "slots = take_slots(Path(sys.argv[1]), 'host-a', 'dead', gpus=(), name=None)\n"
        "slots.note_attempt(AttemptNote(worker='dead', job_id='demo-a', token=7)); slots.note_child(os.getpid())\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    dead = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert dead.returncode == -signal.SIGKILL

    with closing(take(tmp_path)) as slots:
        (left,) = slots.left
        assert (left.worker, left.job_id, left.token) == ("dead", "demo-a", 7)
        assert left.child is not None
        assert left.child.group() == []
    # Nobody has taken it back so far.
    with closing(take(tmp_path)) as slots:
        assert slots.left == (left,)
        slots.forget_left()
    with closing(take(tmp_path)) as slots:
        assert slots.left == ()


def test_a_worker_takes_a_number_whose_dead_holder_has_left_something_before_a_lower_one(tmp_path: Path) -> None:
    first, second = take(tmp_path), take(tmp_path)
    second.note_attempt(AttemptNote(worker="w", job_id="demo-a", token=7))
    first.close()
    second.close()

    with closing(take(tmp_path)) as slots:
        assert [left.job_id for left in slots.left] == ["demo-a"]


def test_what_a_dead_worker_of_several_devices_has_left_is_found_once_on_any_of_them(tmp_path: Path) -> None:
    slots = take(tmp_path, L4[0], L4[1])
    slots.note_attempt(AttemptNote(worker="w", job_id="demo-a", token=7))
    slots.close()

    with closing(take(tmp_path, L4[1])) as one, closing(take(tmp_path, L4[0], L4[2])) as other:
        assert [len(slots.left) for slots in (one, other)] == [1, 1]
    with closing(take(tmp_path, *L4)) as slots:
        assert len(slots.left) == 1


def test_a_file_that_a_crash_of_the_host_has_cut_holds_up_nobody(tmp_path: Path) -> None:
    slots = take(tmp_path)
    slots.note_attempt(AttemptNote(worker="w", job_id="demo-a", token=7))
    slots.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])

    with closing(take(tmp_path)) as slots:
        assert slots.left == ()


def test_a_process_that_got_a_dead_one_s_id_is_nobody_of_its_group() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me.boot == boot_id()

    assert ProcessIdentity(pid=me.pid, started=me.started + 1, boot=me.boot).group() == []
    assert ProcessIdentity(pid=me.pid, started=me.started, boot="another boot").group() == []


def test_a_process_descends_from_those_that_started_it() -> None:
    assert descends_from(os.getpid(), os.getppid())
    assert not descends_from(os.getppid(), os.getpid())


@pytest.mark.parametrize(("wanted", "chosen"), [("0", [0]), ("2, 0", [2, 0]), ("GPU-a1", [1]), ("", []), ("-1", [])])
def test_devices_are_named_by_number_or_id(wanted: str, chosen: list[int]) -> None:
    assert choose_gpus(wanted, L4) == tuple(L4[index] for index in chosen)


def test_a_part_of_a_gpu_is_taken_at_its_word() -> None:
    assert [gpu.uuid for gpu in choose_gpus("MIG-77", L4)] == ["MIG-77"]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("0,7,x", "there is no GPU '7'; there is no GPU 'x'"),
        ("GPU-a", "there is more than one GPU 'GPU-a'"),
        ("1,GPU-a1", "'GPU-a1' is named twice"),
    ],
)
def test_devices_that_cannot_be_meant_are_told_all_at_once(wanted: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        choose_gpus(wanted, L4)

    assert caught.value.hint is not None
    assert "0 (NVIDIA L4), 1 (NVIDIA L4)" in caught.value.hint


def test_devices_of_a_host_without_gpus_are_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="there is no GPU '0'") as caught:
        choose_gpus("0", ())

    assert caught.value.hint is not None
    assert "needs no --devices" in caught.value.hint
