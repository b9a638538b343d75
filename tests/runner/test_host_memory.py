import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runner.host_memory import available_bytes, resident_bytes

GB = 10**9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with 8 GB available, whose process is in no group with a limit."""
    write(tmp_path / "proc/meminfo", "MemTotal:  16000000 kB\nMemAvailable:   8000000 kB\n")
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "proc/self/statm", "1000 500 200 0 0 0 0\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


def test_without_limits_it_is_what_the_host_has(root: Path) -> None:
    assert available_bytes(root) == 8_000_000 * 1024


def test_a_control_group_leaves_its_limit_less_what_it_uses_and_could_drop(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/jobs/one\n")
    group = root / "sys/fs/cgroup/jobs/one"
    write(group / "memory.max", f"{3 * GB}\n")
    write(group / "memory.current", f"{2 * GB}\n")
    write(group / "memory.stat", "anon 1\ninactive_file 500000000\n")
    assert available_bytes(root) == GB + 500_000_000


def test_the_tightest_group_around_the_process_counts(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/jobs/one\n")
    for folder, limit in (("jobs/one", "max"), ("jobs", str(2 * GB)), (".", str(9 * GB))):
        write(root / "sys/fs/cgroup" / folder / "memory.max", f"{limit}\n")
        write(root / "sys/fs/cgroup" / folder / "memory.current", f"{GB}\n")
    assert available_bytes(root) == GB


def test_a_containers_own_group_is_found_at_the_top_of_the_mount(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/docker/0123\n")
    write(root / "sys/fs/cgroup/memory.max", f"{GB}\n")
    write(root / "sys/fs/cgroup/memory.current", "0\n")
    assert available_bytes(root) == GB


def test_a_group_of_the_older_kind_counts_too(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:cpu,memory:/jobs\n1:pids:/jobs\n")
    group = root / "sys/fs/cgroup/memory/jobs"
    write(group / "memory.limit_in_bytes", f"{3 * GB}\n")
    write(group / "memory.usage_in_bytes", f"{GB}\n")
    write(group / "memory.stat", "total_inactive_file 7\n")
    assert available_bytes(root) == 2 * GB + 7


def test_a_limit_that_is_none_is_none(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/\n")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root / "sys/fs/cgroup/memory/memory.usage_in_bytes", "5\n")
    assert available_bytes(root) == 8_000_000 * 1024


def test_a_group_that_is_over_its_limit_leaves_nothing(root: Path) -> None:
    write(root / "sys/fs/cgroup/memory.max", "100\n")
    write(root / "sys/fs/cgroup/memory.current", "200\n")
    assert available_bytes(root) == 0


def test_resident_memory_is_told_apart_by_what_stands_behind_it(root: Path) -> None:
    page = resource.getpagesize()
    assert resident_bytes(root) == (300 * page, 200 * page)


def test_where_nobody_tells_nobody_knows(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    assert resident_bytes(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
@pytest.mark.parametrize(("limit", "held"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_a_limit_of_the_process_itself_counts(limit: str, held: str) -> None:
    program = (
        "import re, resource; from runner.host_memory import available_bytes\n"
        f"held = int(re.search(r'{held}:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        f"resource.setrlimit(resource.{limit}, (held + 50_000_000, resource.RLIM_INFINITY))\n"
        "print(available_bytes())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert 40_000_000 < int(ended.stdout) <= 50_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_process_holds_what_it_takes() -> None:
    # In a process of its own: one that ran other tests may take what it has just given back and still holds.
    program = (
        "from runner.host_memory import resident_bytes\n"
        "before = resident_bytes()[0]\n"
        "taken = b'1' * 50_000_000\n"
        "print(resident_bytes()[0] - before)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert int(ended.stdout) > 45_000_000
