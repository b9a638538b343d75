import errno
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runner.errors import DiskFullError, ModelAccessError
from runner.training.loading import base_model
from runner.training.loading.base_model import locate_base_model

pytestmark = pytest.mark.training

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# The hub client reads its settings once, when it is imported, so each try is a process of its own.
PROGRAM = """
import json, sys
from pathlib import Path
from runner.errors import QLoRAError
from runner.spec import RunSpec
from runner.training.loading.base_model import locate_base_model
try:
    base = locate_base_model(RunSpec.model_validate_json(sys.stdin.read()), Path(sys.argv[1]))
    small = sorted(path.name for path in base.folder.iterdir())
    base.fetch_weights()
    print(json.dumps({"revision": base.revision, "small": small, "shapes": base.read_weight_shapes()}))
except QLoRAError as error:
    print(json.dumps({"code": error.code, "message": error.message, "hint": error.hint}))
"""


@dataclass
class Hub:
    """A model hub on loopback: one repository, or one refusal for everything."""

    files: dict[str, bytes]
    refusal: tuple[int, str] | None = None
    """Status and error code of every answer."""
    asked: list[str] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[Hub]:
    state = Hub({path.name: path.read_bytes() for path in tiny_model.iterdir()})
    state.files["original/consolidated.safetensors"] = b"another layout"
    state.files["pytorch_model.bin"] = b"a format that can run code"

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            state.asked.append(self.path)
            path = self.path.split("?")[0]
            if state.refusal is not None:
                self.answer(state.refusal[0], b"{}", X_Error_Code=state.refusal[1], X_Error_Message="refused")
            elif "/resolve/" in path:
                name = path.split(f"/resolve/{COMMIT}/")[1]
                self.answer(200, state.files[name], ETag=f'"{abs(hash(name)):x}"')
            elif "/tree/" in path:
                tree = [
                    {"type": "file", "path": name, "size": len(body), "oid": f"{abs(hash(name)):040x}"}
                    for name, body in state.files.items()
                ]
                self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            else:
                info = {"id": "acme/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in state.files]}
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

        do_HEAD = do_GET  # noqa: N815  (named by http.server)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ask_hub(hub: Hub, make_spec: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Locate and fetch a base model in a process that talks to the local hub."""

    def ask(*, offline: bool = False, **sections: Any) -> dict[str, Any]:
        spec = make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}], **sections)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS"))
        }
        environment |= {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(Path(base_model.__file__).parents[3]),
            "NO_PROXY": "127.0.0.1",
        }
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "models")],
            input=spec.model_dump_json(),
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        answer: dict[str, Any] = json.loads(ended.stdout)
        return answer

    return ask


def test_a_hub_model_comes_in_two_steps_from_one_commit(hub: Hub, ask_hub: Callable[..., dict[str, Any]]) -> None:
    answer = ask_hub(base_model="acme/tiny")
    assert answer["revision"] == COMMIT
    assert answer["small"] == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert answer["shapes"]["lm_head.weight"] == [512, 256]
    assert not [path for path in hub.asked if "consolidated" in path or ".bin" in path]


def test_a_model_that_was_downloaded_once_is_found_offline(ask_hub: Callable[..., dict[str, Any]]) -> None:
    first = ask_hub(base_model="acme/tiny")
    assert ask_hub(base_model="acme/tiny", offline=True)["revision"] == first["revision"]


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        ((403, "GatedRepo"), "model-gated", "is gated"),
        ((404, "RepoNotFound"), "model-not-found", "does not know the base model 'acme/tiny'"),
        ((401, "RepoNotFound"), "model-not-found", "does not know the base model 'acme/tiny'"),
        ((404, "RevisionNotFound"), "model-not-found", "has no revision 'v9'"),
        ((403, "Forbidden"), "model-gated", "refuses this host's token"),
        ((400, "BadRequest"), "model-offline", "answers HTTP 400"),
    ],
)
def test_a_refusal_of_the_hub_is_told_apart(
    hub: Hub, ask_hub: Callable[..., dict[str, Any]], refusal: tuple[int, str], code: str, words: str
) -> None:
    hub.refusal = refusal
    answer = ask_hub(base_model="acme/tiny", revision="v9" if "Revision" in refusal[1] else None)
    assert answer["code"] == code
    assert words in answer["message"]
    assert "models/acme/tiny first, which does not exist" in answer["hint"]


def test_a_hub_that_cannot_be_reached_is_offline(hub: Hub, ask_hub: Callable[..., dict[str, Any]]) -> None:
    hub.address = "http://127.0.0.1:9"
    answer = ask_hub(base_model="acme/tiny")
    assert answer["code"] == "model-offline"
    assert "cannot be reached at http://127.0.0.1:9" in answer["message"]


def test_a_host_in_offline_mode_says_so(ask_hub: Callable[..., dict[str, Any]]) -> None:
    answer = ask_hub(base_model="acme/tiny", offline=True)
    assert answer["code"] == "model-offline"
    assert "HF_HUB_OFFLINE" in answer["message"]


def test_a_folder_under_the_models_root_wins_over_the_hub(
    make_spec: Callable[..., Any], tmp_path: Path, models_root: Path
) -> None:
    spec = make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}])
    found = locate_base_model(spec, models_root)
    assert (found.folder, found.revision, found.name) == ((models_root / "tiny").resolve(), None, "tiny")


def test_a_name_that_is_neither_folder_nor_hub_id_says_so(make_spec: Callable[..., Any], tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}], base_model="not a hub id")
    with pytest.raises(ModelAccessError, match="that is no hub id either") as raised:
        locate_base_model(spec, tmp_path / "models")
    assert raised.value.code == "model-not-found"


def test_a_full_disk_is_no_access_problem(
    make_spec: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(base_model, "snapshot_download", fill_disk)
    spec = make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}], base_model="acme/tiny")
    with pytest.raises(DiskFullError, match="does not fit into the download cache"):
        locate_base_model(spec, tmp_path / "models")
