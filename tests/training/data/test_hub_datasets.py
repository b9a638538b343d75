import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from runner.errors import DatasetError
from runner.spec import DatasetEntry, ProjectSpec, RunSpec
from runner.training.data import hub_datasets
from runner.training.data.hub_datasets import load_folder
from runner.training.data.reading import read_datasets

pytestmark = pytest.mark.training

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EARLIER = "fedcba9876543210fedcba9876543210fedcba98"
NOWHERE = "0" * 40
SUMS = '{"question": "2 + 2?", "answer": "4", "level": 1}\n{"question": "3 + 3?", "answer": "6", "level": 1}\n'
COLUMNS = {"prompt": "question", "completion": "answer"}
ROWS = [{"prompt": "2 + 2?", "completion": "4"}, {"prompt": "3 + 3?", "completion": "6"}]

# The hub client reads its settings once, when it is imported, so this is a process of its own.
PROGRAM = """
import json, sys
from pathlib import Path
from runner.errors import QLoRAError
from runner.spec import RunSpec
from runner.training.data.hub_datasets import pin_datasets
from runner.training.data.reading import read_datasets
for line in sys.stdin:
    try:
        spec = pin_datasets(RunSpec.model_validate_json(line))
        read = read_datasets(spec, [1], Path("."))[1]
        print(json.dumps({"revision": spec.datasets[1].revision, "rows": read.rows, "fingerprint": read.fingerprint}))
    except QLoRAError as error:
        print(json.dumps({"code": error.code, "message": error.message, "hint": error.hint}))
"""


def entry(**keys: Any) -> DatasetEntry:
    return DatasetEntry.model_validate({"name": "sums", "columns": COLUMNS} | keys)


# --- a folder --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two splits, one of them in CSV's clothes."""
    folder = tmp_path / "projects" / "data" / "sums"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(SUMS)
    (folder / "test.jsonl").write_text(SUMS.splitlines()[0])
    return folder


def test_a_folder_of_data_files_is_read_by_split(folder: Path) -> None:
    read = load_folder(entry(path="data/sums"), folder)
    assert (read.format, read.rows) == ("prompt_completion", ROWS)
    assert load_folder(entry(path="data/sums", split="test"), folder).rows == ROWS[:1]
    assert load_folder(entry(path="data/sums", split="train[1:]"), folder).rows == ROWS[1:]
    assert load_folder(entry(path="data/sums", data_files=["te*.jsonl"]), folder).rows == ROWS[:1]


def test_a_path_that_is_a_folder_is_loaded_as_one(folder: Path, run_spec: RunSpec) -> None:
    spec = run_spec.model_copy(update={"datasets": {1: entry(path="data/sums")}})
    assert read_datasets(spec, [1], folder.parents[1])[1].rows == ROWS


def test_a_changed_folder_is_read_again_and_has_another_fingerprint(folder: Path) -> None:
    before = load_folder(entry(path="data/sums"), folder)
    (folder / "train.jsonl").write_text(SUMS.splitlines()[1])
    after = load_folder(entry(path="data/sums"), folder)
    assert after.rows == ROWS[1:]
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"split": "dev"}, "The folder data/sums, split 'dev' cannot be loaded: Unknown split \"dev\"."),
        ({"config": "hard"}, "BuilderConfig 'hard' not found. Available: ['default']"),
        ({"data_files": ["none.jsonl"]}, "Unable to find '"),
        ({"columns": {"text": "body"}}, "row 1: has no column 'body' for text; found 'question', 'answer'"),
    ],
)  # fmt: skip
def test_what_a_folder_does_not_have_is_named(folder: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load_folder(entry(**({"path": "data/sums"} | keys)), folder)
    assert message in caught.value.message
    assert caught.value.hint is not None


def test_broken_and_missing_data_files_are_named(folder: Path) -> None:
    (folder / "train.jsonl").write_text(SUMS + "oops")
    with pytest.raises(DatasetError, match="An error occurred while generating the dataset: JSON parse error"):
        load_folder(entry(path="data/sums"), folder)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="doesn't contain any data files"):
        load_folder(entry(path="data/sums"), folder)


def test_code_in_a_folder_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "sums.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DatasetError, match=r"Dataset scripts are no longer supported, but found sums\.py"):
        load_folder(entry(path="data/sums"), folder)
    assert not (tmp_path / "ran").exists()


# --- the hub ---------------------------------------------------------------------------------------------------------


FILES = {"train.jsonl": SUMS.encode(), "test.jsonl": SUMS.splitlines()[0].encode()}
FILES_AT = {COMMIT: FILES, EARLIER: FILES | {"train.jsonl": SUMS.splitlines()[1].encode()}}
COMMIT_OF = {"main": COMMIT, "v1": EARLIER}
REFUSALS = {
    "acme/gated": (403, "GatedRepo"),
    "acme/private": (401, "RepoNotFound"),
    "acme/busy": (503, ""),
}
"""Status and error code by dataset."""


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub that has `acme/sums`, refuses some others, and hangs up on `acme/silent`."""

    protocol_version = "HTTP/1.1"
    commit = COMMIT

    def answer(self, status: int, body: bytes | object, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content)), "X-Repo-Commit": self.commit} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, {}, X_Error_Code=code, X_Error_Message="refused")

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        named = re.search("/(?:revision|resolve|paths-info|tree)/([^/]+)", path)
        revision = named[1] if named else "main"
        self.commit = COMMIT_OF.get(revision, revision)
        files = FILES_AT.get(self.commit, {})
        about = [
            {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}  # noqa: S324
            for name, body in files.items()
        ]
        refused = next((refusal for name, refusal in REFUSALS.items() if name in path), None)
        if "acme/silent" in path:
            self.close_connection = True
        elif "/revision/nowhere" in path:
            self.refuse(404, "RevisionNotFound")
        elif refused is not None and (refused[1] != "GatedRepo" or "/resolve/" in path):
            self.refuse(*refused)  # a gated dataset may be known to everybody, but not read
        elif "/resolve/" in path:
            body = files.get(path.split("/resolve/")[1].partition("/")[2])
            if body is None:
                self.refuse(404, "EntryNotFound")
            else:
                self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"')  # noqa: S324
        elif "/paths-info/" in path:
            self.answer(200, [one for one in about if str(one["path"]) in unquote(asked)])
        elif "/tree/" in path:
            below = path.split("/tree/")[1].partition("/")[2]
            self.answer(200, [one for one in about if str(one["path"]).startswith(below)])
        else:
            self.answer(200, {"id": "acme/sums", "sha": self.commit, "siblings": []})

    do_HEAD = do_POST = do_GET  # noqa: N815  (named by http.server)

    def log_message(self, *_: Any) -> None:
        return


Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ask_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Pin and read datasets one after the other in a process that talks to a local hub; all share one cache."""
    folder = tmp_path_factory.mktemp("host")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(*datasets: dict[str, Any], offline: bool = False) -> list[dict[str, Any]]:
        share = {"dataset_id": 1}
        project = {"name": "t", "base_model": "t", "output_directory": "t"}
        project |= {"traits": [{"trait_type": "t", "datasets": [share]}]}  # type: ignore[dict-item]
        specs = [RunSpec(project=ProjectSpec.model_validate(project), datasets={1: entry(**keys)}) for keys in datasets]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(Path(hub_datasets.__file__).parents[3]),
            "NO_PROXY": "127.0.0.1",
        }
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input="\n".join(spec.model_dump_json() for spec in specs),
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
            check=True,
        )
        return [json.loads(line) for line in ended.stdout.splitlines()]

    yield ask
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_dataset_is_read_at_its_commit_and_what_the_hub_refuses_is_told(ask_hub: Ask) -> None:
    whole, part, split, tag, commit, *refused = ask_hub(
        {"hub": "acme/sums"},
        {"hub": "acme/sums", "revision": "main", "data_files": ["te*.jsonl"]},
        {"hub": "acme/sums", "split": "test"},
        {"hub": "acme/sums", "revision": "v1"},
        {"hub": "acme/sums", "revision": EARLIER, "split": "train[:1]"},
        {"hub": "acme/sums", "split": "dev"},
        {"hub": "acme/sums", "revision": "nowhere"},
        {"hub": "acme/gated"},
        {"hub": "acme/private"},
        {"hub": "acme/silent"},
        {"hub": "acme/busy"},
    )
    assert (whole["revision"], whole["rows"]) == (COMMIT, ROWS)
    assert (part["revision"], part["rows"]) == (COMMIT, ROWS[:1])
    assert (split["revision"], split["rows"]) == (COMMIT, ROWS[:1])
    assert tag == commit
    assert (tag["revision"], tag["rows"]) == (EARLIER, ROWS[1:])
    assert whole["fingerprint"] != part["fingerprint"]
    assert {answer["code"] for answer in refused} == {"dataset"}
    told = [
        "The hub dataset 'acme/sums' at 0123456789ab, split 'dev' cannot be loaded: Unknown split",
        "The hub dataset 'acme/sums' has no revision 'nowhere'.",
        "The hub dataset 'acme/gated' is gated, and this host's token may not read it.",
        "The hub does not know the dataset 'acme/private', or this host's token may not see it.",
        "The hub dataset 'acme/silent' is not on this host, and the hub cannot be reached at",
        "The hub refuses the dataset 'acme/busy': ",
    ]
    assert [answer["message"][: len(start)] for answer, start in zip(refused, told, strict=True)] == told
    assert ["HF_TOKEN" in answer["hint"] for answer in refused] == [False, False, True, True, False, False]
    # Later, on the same host without a network: any commit that it has, and no other.
    again, former, other, branch = ask_hub(
        {"hub": "acme/sums", "revision": COMMIT},
        {"hub": "acme/sums", "revision": EARLIER},
        {"hub": "acme/sums", "revision": NOWHERE},
        {"hub": "acme/sums"},
        offline=True,
    )
    assert again == whole
    assert (former["revision"], former["rows"]) == (EARLIER, ROWS[1:])
    assert "is not on this host, which is in offline mode" in other["message"]
    assert "pin revision in datasets.toml to a commit" in branch["hint"]
