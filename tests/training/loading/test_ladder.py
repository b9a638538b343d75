"""The descent from rung to rung: what falls, what ends, what is freed and what is told."""

import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from loads import announcements, failed_rungs, failing_load, load  # type: ignore[import-not-found]  # see conftest
from transformers import LlamaConfig, LlamaForCausalLM

from runner.errors import LadderError, MemoryExhaustedError
from runner.events import ChildEvent
from runner.spec import RunSpec
from runner.training import memory, ranks
from runner.training.loading import ladder
from runner.training.loading.protected_load import protected_load
from runner.training.loading.rung import RungLoader
from runner.training.stopping import StopRequestedError, StopSwitch
from tests.training.alone import passed_alone
from tests.training.model_folders import copy_tokenizer

pytestmark = [
    pytest.mark.training,
    # bitsandbytes 0.49 warns whenever an 8-bit module gets another input than float16.
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
]

Make = Callable[..., RunSpec]


def test_a_model_that_reads_weight_shapes_falls_to_8_bit(make: Make, stubborn_root: Path) -> None:
    receipt, events = load(make(base_model="shape-reader"), stubborn_root)
    assert (receipt.rung, receipt.rung_asked) == ("8bit", "4bit")
    assert [failed.rung for failed in receipt.failed] == ["4bit"]
    assert receipt.quantized_modules == 2
    first, last = announcements(events)
    assert first.startswith("⚠️ 4-bit quantization failed with shape '")
    assert first.endswith(", trying 8-bit quantization...")
    assert last == "✅ Model loaded with 8-bit quantization, config protected"


def test_a_model_that_multiplies_raw_weights_falls_to_no_quantization(make: Make, stubborn_root: Path) -> None:
    receipt, events = load(make(base_model="value-reader"), stubborn_root)
    assert (receipt.rung, receipt.quantized_modules) == ("none", 0)
    assert [failed.rung for failed in receipt.failed] == ["4bit", "8bit"]
    assert all(failed.reason for failed in receipt.failed)
    first, second, last = announcements(events)
    assert first.startswith("⚠️ 4-bit quantization failed with ")
    assert second.startswith("⚠️ 8-bit quantization also failed, trying without quantization... (")
    assert last == "✅ Model loaded without quantization, config protected"


def test_a_ladder_of_one_rung_does_not_fall(make: Make, stubborn_root: Path) -> None:
    spec = make(base_model="shape-reader", quantization={"ladder": ["4bit"]})
    error, events = failing_load(spec, stubborn_root)
    assert isinstance(error, LadderError)
    assert error.message.startswith("4-bit quantization failed with RuntimeError: shape '")
    assert error.hint is not None
    assert "quantization.ladder permits one rung only" in error.hint
    assert "reads a weight's shape" in error.hint
    assert [event.next_rung for event in failed_rungs(events)] == [None]


def test_an_exhausted_ladder_names_every_reason(make: Make, stubborn_root: Path) -> None:
    spec = make(base_model="value-reader", quantization={"ladder": ["4bit", "8bit"]})
    error, events = failing_load(spec, stubborn_root)
    assert error.code == "ladder-exhausted"
    assert "4-bit quantization failed with " in error.message
    assert "8-bit quantization failed with " in error.message
    assert [event.next_rung for event in failed_rungs(events)] == ["8bit", None]


def test_a_model_whose_linear_layers_escape_quantization_does_not_count_as_quantized(
    make: Make, stubborn_root: Path, tmp_path: Path
) -> None:
    shutil.copytree(stubborn_root / "value-reader", tmp_path / "bare" / "value-reader")
    config_path = tmp_path / "bare" / "value-reader" / "config.json"
    config = json.loads(config_path.read_text()) | {"plain_parameters": True}
    config_path.write_text(json.dumps(config))
    receipt, events = load(make(base_model="value-reader"), tmp_path / "bare")
    assert receipt.rung == "none"
    reasons = [event.failed.reason for event in failed_rungs(events)]
    assert reasons[0] == ("the model loaded, but not with 4-bit modules: 0 of 1 linear modules are 4-bit and 0 8-bit")


# --- between two rungs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A models root with `wide`, large enough for its memory to be told from noise: 25 million parameters."""
    root = tmp_path_factory.mktemp("wide")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=2,
        num_attention_heads=8,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(root / "wide")
    copy_tokenizer(tiny_model, root / "wide")
    return root


def look_at_a_shape(self: Any, **_: Any) -> None:
    """A forward pass that no weight survives."""
    self.model.layers[0].mlp.up_proj.weight.view(7, 7)


@pytest.mark.timeout(300)
def test_what_a_failed_rung_held_is_given_back_and_measured(
    request: pytest.FixtureRequest, make: Make, wide_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if passed_alone(request):
        return
    spec = make(base_model="wide", quantization={"ladder": ["8bit", "none"]})
    receipt, _ = load(spec, wide_root)
    assert receipt.steady_bytes is not None
    assert receipt.steady_bytes > receipt.model_bytes * 0.9
    assert receipt.load_peak_bytes is not None
    assert receipt.load_peak_bytes > receipt.steady_bytes * 0.9
    monkeypatch.setattr(LlamaForCausalLM, "forward", look_at_a_shape)
    _, events = failing_load(spec, wide_root)
    for event in failed_rungs(events):
        assert event.failed.held_bytes is not None
        assert event.failed.held_bytes < receipt.model_bytes / 5

    kept: list[Any] = []

    def keep_the_model(self: Any, **_: Any) -> None:
        kept.append(self)
        look_at_a_shape(self)

    monkeypatch.setattr(LlamaForCausalLM, "forward", keep_the_model)
    _, (*_, failed) = failing_load(make(base_model="wide", quantization={"ladder": ["8bit"]}), wide_root)
    assert len(kept) == 1
    assert failed.failed.held_bytes > receipt.model_bytes * 0.8


def test_the_rung_that_failed_leaves_no_model_behind(
    make: Make, stubborn_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load_model, release = RungLoader.load, memory.release_memory

    def remember(self: RungLoader, rung: Any) -> Any:
        model = load_model(self, rung)
        loaded.append(weakref.ref(model))
        return model

    def count() -> None:
        release()
        alive.append(sum(model() is not None for model in loaded))

    monkeypatch.setattr(RungLoader, "load", remember)
    monkeypatch.setattr(ladder, "release_memory", count)
    load(make(base_model="value-reader"), stubborn_root)
    assert len(loaded) == 3
    # Before and after each of two rungs that failed; the last is the model that holds.
    assert alive == [0, 0, 0, 0, 0, 1]


def test_where_the_next_rung_has_no_room_the_first_error_ends_the_job(
    make: Make, stubborn_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "free_bytes", lambda _: 100_000)
    error, events = failing_load(make(base_model="shape-reader"), stubborn_root)
    assert isinstance(error, LadderError)
    assert error.code == "ladder-no-room"
    assert error.message.startswith("4-bit quantization failed with RuntimeError: shape '")
    assert "No lower rung was tried: 8-bit quantization needs about 0." in error.message
    assert " MB while the weights load, and 0.1 MB are free on cpu" in error.message
    assert [event.next_rung for event in failed_rungs(events)] == [None]


def test_processes_that_share_the_hosts_memory_have_to_fit_into_it_together(
    make: Make, stubborn_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(base_model="shape-reader")
    monkeypatch.setattr(ladder, "free_bytes", lambda _: 0)
    alone, _ = failing_load(spec, stubborn_root)
    needed = re.search(r"needs about ([\d.]+) MB", alone.message)
    assert needed is not None

    # Room for one of them and a half.
    monkeypatch.setattr(ladder, "free_bytes", lambda _: int(float(needed[1]) * 1_500_000))
    assert load(spec, stubborn_root)[0].rung == "8bit"
    monkeypatch.setattr(ranks, "count", lambda: 2)
    together, _ = failing_load(spec, stubborn_root)

    assert together.code == "ladder-no-room"
    assert "while the weights load by 2 processes, and " in together.message


def test_where_nobody_knows_what_is_free_the_next_rung_is_tried(
    make: Make, stubborn_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "free_bytes", lambda _: None)
    receipt, _ = load(make(base_model="shape-reader"), stubborn_root)
    assert receipt.rung == "8bit"


def test_a_stop_request_ends_the_ladder_between_two_rungs(
    make: Make, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopSwitch()

    def stop_and_fail(self: Any, **_: Any) -> None:
        stop.set()
        look_at_a_shape(self)

    monkeypatch.setattr(LlamaForCausalLM, "forward", stop_and_fail)
    events: list[ChildEvent] = []
    with (
        pytest.raises(StopRequestedError),
        protected_load(make(), models_root=models_root, emit=events.append, stop=stop),
    ):
        pass
    assert [(event.failed.rung, event.next_rung) for event in failed_rungs(events)] == [("4bit", None)]


def test_a_stop_inside_a_rung_is_no_failure_of_the_rung(
    make: Make, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise StopRequestedError

    monkeypatch.setattr(LlamaForCausalLM, "forward", stop)
    events: list[ChildEvent] = []
    with pytest.raises(StopRequestedError), protected_load(make(), models_root=models_root, emit=events.append):
        pass
    assert failed_rungs(events) == []


def test_an_unknown_error_outside_load_and_probe_does_not_fall(
    make: Make, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_count(_: Any) -> None:
        raise KeyError("experts")

    monkeypatch.setattr(ladder, "list_unquantized", lose_count)
    events: list[ChildEvent] = []
    with pytest.raises(KeyError), protected_load(make(), models_root=models_root, emit=events.append):
        pass
    assert failed_rungs(events) == []


def test_an_unknown_error_of_who_listens_does_not_fall(make: Make, stubborn_root: Path) -> None:
    told: list[str] = []

    def listen(event: ChildEvent) -> None:
        told.append(event.kind)
        if event.kind == "rung_failed":
            raise KeyError("listener")

    with (
        pytest.raises(KeyError, match="listener"),
        protected_load(make(base_model="value-reader"), models_root=stubborn_root, emit=listen),
    ):
        pass
    assert told.count("rung_failed") == 1


# --- inside the loading of a tensor -------------------------------------------------------------------------------


def test_running_out_of_memory_while_a_tensor_is_quantized_never_falls(
    make: Make, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_: Any, **__: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", exhaust)
    error, events = failing_load(make(), models_root)
    assert isinstance(error, MemoryExhaustedError)
    assert [(event.failed.rung, event.next_rung) for event in failed_rungs(events)] == [("4bit", None)]


PROGRAM = """
import json, sys
from pathlib import Path
import bitsandbytes
from runner.spec import RunSpec
from runner.training.loading.protected_load import protected_load
events = []
spec = RunSpec.model_validate_json(sys.stdin.read())
with protected_load(spec, models_root=Path(sys.argv[1]), emit=events.append) as loaded:
    pass
failed = [event.failed.model_dump() for event in events if event.kind == "rung_failed"]
print(json.dumps({"rung": loaded.receipt.rung, "failed": failed, "library": bitsandbytes.__file__}))
"""


def test_a_dead_native_library_falls(make: Make, models_root: Path, tmp_path: Path) -> None:
    # A whole bitsandbytes, whose native library is a library without its functions: it loads, and dies when called.
    installed = Path(bitsandbytes.__file__).parent
    shutil.copytree(installed, tmp_path / "dead" / "bitsandbytes", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    other = next(Path(torch.__file__).parent.glob("lib/libshm*.so*"))
    shutil.copy(other, tmp_path / "dead" / "bitsandbytes" / "libbitsandbytes_cpu.so")
    path = f"{tmp_path / 'dead'}:{Path(__file__).parents[3]}"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(models_root)],
        input=make(quantization={"ladder": ["4bit", "none"]}).model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )
    answer = json.loads(ended.stdout)
    assert answer["library"].startswith(str(tmp_path))
    assert answer["rung"] == "none"
    (failed,) = answer["failed"]
    assert (failed["rung"], failed["failure_class"]) == ("4bit", "native-library")
    assert failed["reason"].startswith("Method 'c")
