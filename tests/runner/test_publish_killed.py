"""Publishing an adapter, killed at every single line of Python that it runs through, standard library included."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.run_directory import RunDirectory

FILES = ("adapter_config.json", "adapter_model.safetensors", "manifest.json")

# Forks a child for every line of `publish`, which kills itself there, until one comes through to the end. A process
# of its own, because pytest's has threads, and forks of such a process may hang.
PUBLISHER = """
import json, os, signal, sys
from collections import Counter
from pathlib import Path
from runner.run_directory import RunDirectory

root, former = Path(sys.argv[1]), sys.argv[2] == "former"
FILES = json.loads(sys.argv[3])

def fill(folder, content):
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(content)

def publish_until(line, job_dir):
    # Each line once and, where files or folders are gone through, the first few times.
    seen, times = 0, Counter()
    def trace(frame, event, argument):
        nonlocal seen
        if event == "line":
            place = frame.f_code.co_filename, frame.f_lineno
            times[place] += 1
            if times[place] <= 2:
                seen += 1
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    RunDirectory(job_dir / "attempt-2").publish()
    sys.settrace(None)
    os._exit(0)

states = []
line = 0
while True:
    line += 1
    job_dir = root / str(line)
    fill(job_dir / "attempt-2" / "adapter", "new")
    if former:
        fill(job_dir / "adapter", "old")
    child = os.fork()
    if child == 0:
        publish_until(line, job_dir)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        break
print(line)
"""


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory where there is one: on a disk, hundreds of flushes take a minute."""
    shared = Path("/dev/shm")  # noqa: S108 - names in it are drawn by tempfile
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


def _killed_everywhere(root: Path, *, former: bool) -> list[Path]:
    """The folders of jobs whose publishing was killed, one for each line, and of the last one, which came through."""
    command = [sys.executable, "-c", PUBLISHER, str(root), "former" if former else "fresh", json.dumps(FILES)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [root / str(line) for line in range(1, int(done.stdout) + 1)]


def _content(folder: Path) -> str | None:
    """`old` or `new` where every file is there and says so, None where there is no such folder."""
    if not folder.exists():
        return None
    [content] = {(folder / name).read_text() for name in FILES}
    return content


@pytest.mark.parametrize("former", [False, True], ids=["a first adapter", "in place of a former one"])
def test_a_kill_at_any_line_leaves_no_adapter_or_a_whole_one(memory_path: Path, *, former: bool) -> None:
    *killed, finished = _killed_everywhere(memory_path, former=former)

    states = [_content(job_dir / "adapter") for job_dir in killed]

    assert _content(finished / "adapter") == "new"
    assert sorted(path.name for path in finished.iterdir()) == ["adapter", "attempt-2"]
    # It was there in the beginning and in the end, so the kills really fell before and after the renames.
    assert (states[0], states[-1]) == ("old" if former else None, "new")
    for job_dir, state in zip(killed, states, strict=True):
        again = RunDirectory(job_dir / "attempt-2")
        # Whatever was killed, what was trained is whole, here or there, and publishing again heals the rest.
        if state != "new":
            assert _content(again.adapter_path) == "new"
            again.publish()
            assert sorted(path.name for path in job_dir.iterdir()) == ["adapter", "attempt-2"]
        assert _content(job_dir / "adapter") == "new"
