"""The child process as its parent sees it: events, files, exit statuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FinishedChild  # type: ignore[import-not-found]  # beside this file; mypy names it by its path
from safetensors.torch import load_file
from transformers import AutoTokenizer

from runner.errors import DatasetError
from runner.event_lines import parse_event
from runner.events import CheckpointSaved, Evaluated, PhaseStarted, RunFailed, RunInterrupted, RunSucceeded
from runner.provenance import fingerprint_file
from runner.spec import RunSpec
from runner.training.__main__ import EventWriter, failure_of, run
from runner.training.accelerator import choose_device
from runner.training.loading.quantized import measure_quantization
from runner.training.loop.arguments import settle_optimizer
from runner.training.outcome.card import _cell
from runner.training.stopping import StopSwitch

pytestmark = pytest.mark.timeout(180)

COMMIT = "0123456789abcdef0123456789abcdef01234567"

ORDER = [
    "versions_reported",
    "tokenizer_loaded",
    "config_loaded",
    "data_mixed",
    "model_loaded",
    "evaluated",
    "training_started",
    *["metrics_logged"] * 3,
    "checkpoint_saved",
    *["metrics_logged"] * 3,
    "checkpoint_saved",
    "evaluated",
    "adapter_saved",
    "adapter_verified",
    "run_succeeded",
]


def test_a_good_run_tells_its_story_in_order_and_exits_0(finished_child: Any) -> None:
    assert finished_child.status == 0, finished_child.log
    kinds = [event.kind for event in finished_child.events]
    assert [kind for kind in kinds if kind != "phase_started"] == ORDER
    assert [event.phase for event in finished_child.events if isinstance(event, PhaseStarted)] == [
        "versions", "tokenizer", "config", "data", "model", "baseline", "training", "evaluation", "saving", "verifying",
    ]  # fmt: skip


def test_the_run_directory_keeps_the_same_events(finished_child: Any) -> None:
    lines = (finished_child.run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()

    assert [parse_event(line) for line in lines] == finished_child.events


def test_the_summary_is_what_was_logged(finished_child: Any) -> None:
    end = finished_child.events[-1]
    losses = [event.loss for event in finished_child.events if event.kind == "metrics_logged"]

    assert isinstance(end, RunSucceeded)
    assert (end.summary.loss_first, end.summary.loss_last) == (losses[0], losses[-1])
    assert (end.summary.rung, end.summary.steps, end.summary.guard_interceptions) == ("4bit", 6, 0)
    assert end.summary.train_s < end.summary.duration_s


def test_the_adapter_comes_with_tokenizer_card_and_manifest(finished_child: Any, child_spec: RunSpec) -> None:
    adapter = Path(finished_child.events[-1].adapter_path)
    manifest = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))
    card = (adapter / "README.md").read_text(encoding="utf-8")

    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {p.name for p in adapter.iterdir()}
    assert RunSpec.model_validate(manifest["spec"]) == settle_optimizer(child_spec, choose_device().type)
    assert manifest["rung"] == manifest["receipt"]["rung"] == "4bit"
    assert manifest["versions"].keys() >= {"torch", "transformers", "peft", "bitsandbytes", "trl"}
    (mixed,) = [event for event in finished_child.events if event.kind == "data_mixed"]
    told = [(share.trait_type, share.rows_used, share.trained_tokens, share.held_out_rows) for share in mixed.shares]
    assert [
        (one["trait_type"], one["rows_used"], one["trained_tokens"], one["held_out_rows"]) for one in manifest["data"]
    ] == told
    assert [(trait, rows) for trait, rows, _, _ in told] == [("trait 1", 20)]
    assert told[0][2] > 20
    assert [len(share["sha256"]) for share in manifest["data"]] == [64]
    assert manifest["verified"]["max_difference"] < manifest["verified"]["base_difference"]
    assert "trained with 4-bit quantization (28 of 29 linear modules and" in card
    assert "| rows 1 | 0 % | " in card
    assert "| 80 % of them |" in card
    assert "its logits are exactly the trained model's" in card
    assert "Not quantized: embeddings (131,072 parameters), output layer (131,072 parameters)" in card
    assert f"6 steps of 6 rows; {finished_child.events[-1].summary.trainable_parameters:,} parameters trained." in card
    assert "| device | cpu | this host |" in card or "| device | cuda:0 | this host |" in card
    assert "base model | tiny, files with fingerprint " in card
    job_and_attempt = "/".join(finished_child.run_dir.parts[-2:])
    assert manifest["run"] == job_and_attempt
    assert f"| run | {job_and_attempt} |".replace("_", "\\_") in card
    (entry,) = RunSpec.model_validate(manifest["spec"]).datasets.values()
    assert f"| trait 1 | {entry.name} ({entry.source}) |".replace("_", "\\_") in card


def test_the_card_holds_base_rung_data_hyperparameters_and_results(finished_child: Any) -> None:
    adapter = Path(finished_child.events[-1].adapter_path)
    card = (adapter / "README.md").read_text(encoding="utf-8")
    before, after = [event for event in finished_child.events if isinstance(event, Evaluated)]
    summary = finished_child.events[-1].summary

    assert card.startswith('---\nbase_model: "tiny"\nlibrary_name: peft\n')
    assert [line for line in card.splitlines() if line.startswith("#") and not line.startswith("# ")][:7] == [
        "## Data",
        "## Loss on held-out rows",
        "## Answers right to the letter",
        "## Samples",
        "## Settings",
        "## How it was made",
        "## Use",
    ]
    assert "A LoRA adapter for `tiny`, trained with 4-bit quantization (" in card
    assert f"Training loss {summary.loss_first:.4g} at the first step, {summary.loss_last:.4g} over the last" in card
    assert "max\\_steps 6" in card
    [old], [new] = before.samples, after.samples
    sample = (old.prompt, old.completion, new.completion)
    assert " | ".join(_cell(text) for text in sample) in card
    assert "![Loss by optimizer step](loss.png)" in card
    assert (adapter / "loss.png").read_bytes() == (finished_child.run_dir / "loss.png").read_bytes()


def test_the_manifest_names_all_that_the_adapter_came_from(finished_child: Any) -> None:
    adapter = Path(finished_child.events[-1].adapter_path)
    manifest = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))
    started = next(event for event in finished_child.events if event.kind == "training_started")

    assert manifest["settings"] == [setting.model_dump(mode="json") for setting in started.settings]
    assert (manifest["base_model"], manifest["revision"], manifest["git_revision"]) == ("tiny", None, None)
    assert manifest["base_fingerprint"] in (adapter / "README.md").read_text(encoding="utf-8")
    assert manifest["weights_sha256"] == fingerprint_file(adapter / "adapter_model.safetensors")
    assert manifest["created_at"] >= started.at.isoformat()


def test_the_receipt_states_what_was_asked_and_reached_in_numbers(finished_child: Any) -> None:
    receipt = json.loads((finished_child.run_dir / "receipt.json").read_text(encoding="utf-8"))
    tokenizer, loaded = [
        next(event for event in finished_child.events if event.kind == kind)
        for kind in ("tokenizer_loaded", "model_loaded")
    ]

    manifest = json.loads((finished_child.run_dir / "adapter" / "manifest.json").read_text(encoding="utf-8"))
    assert receipt == manifest["receipt"] == loaded.receipt.model_dump(mode="json")
    assert (receipt["rung_asked"], receipt["rung"], receipt["failed"]) == ("4bit", "4bit", [])
    assert (receipt["linear_modules"], receipt["quantized_modules"], receipt["revision"]) == (29, 28, None)
    assert loaded.receipt.quantized_share == receipt["quantized_parameters"] / receipt["total_parameters"] > 0.9
    assert (receipt["tokenizer_class"], receipt["pad_token"]) == (tokenizer.tokenizer_class, "<|pad|>")
    assert receipt["pad_choice"] == tokenizer.pad_choice == "existing"
    assert None not in {receipt["load_peak_bytes"], receipt["steady_bytes"]}
    assert receipt["memory_method"]
    assert receipt["probe_loss"] > 0
    assert receipt["probe_grad_norm"] > 0


def test_the_vocabulary_stays_as_large_as_the_base_models(finished_child: Any, tiny_model: Path) -> None:
    adapter = finished_child.run_dir / "adapter"
    trained = load_file(adapter / "adapter_model.safetensors")
    base = load_file(tiny_model / "model.safetensors")

    assert {weight.shape for name, weight in trained.items() if "lm_head" in name} == {base["lm_head.weight"].shape}
    assert not [name for name in trained if "embed_tokens" in name]
    assert len(AutoTokenizer.from_pretrained(adapter)) == len(AutoTokenizer.from_pretrained(tiny_model))


def test_the_adapter_names_its_base_model_as_the_project_does(finished_child: Any) -> None:
    config = json.loads((Path(finished_child.events[-1].adapter_path) / "adapter_config.json").read_text())

    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny", None)


# What PEFT says while it loads is not ours to silence in other people's programs.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:Model has `tie_w:UserWarning")
def test_what_the_card_says_about_loading_the_adapter_works(
    finished_child: Any, models_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = Path(finished_child.events[-1].adapter_path)
    code, asking = re.findall(r"```python\n(.*?)```", (adapter / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(models_root)

    names: dict[str, Any] = {}
    exec(code.replace("this/folder", str(adapter)), names)  # noqa: S102  # the very text that people will copy

    assert measure_quantization(names["base"]).modules_4bit == 28
    assert names["model"].active_adapters == ["default"]
    assert names["tokenizer"].eos_token == "<|end|>"

    capsys.readouterr()
    exec(asking, names)  # noqa: S102
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert capsys.readouterr().out


def test_the_loss_curve_is_drawn(finished_child: Any) -> None:
    assert (finished_child.run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_held_out_loss_is_measured_before_and_after_and_kept(finished_child: Any) -> None:
    before, after = [event for event in finished_child.events if isinstance(event, Evaluated)]
    adapter = Path(finished_child.events[-1].adapter_path)
    manifest = json.loads((adapter / "manifest.json").read_text(encoding="utf-8"))
    [earlier], [later] = before.held_out, after.held_out

    assert (later.trait_type, later.rows, later.before) == ("trait 1", 2, earlier.loss)
    assert later.loss < earlier.loss
    assert manifest["metrics"]["after"]["held_out"] == [later.model_dump(mode="json")]
    assert [trait["held_out_rows"] for trait in manifest["traits"]] == [2]
    assert f"| trait 1 | 2 | {later.tokens} | {earlier.loss:.4g} | {later.loss:.4g} |" in (
        adapter / "README.md"
    ).read_text(encoding="utf-8")


def test_the_samples_before_and_after_answer_the_same_prompts(finished_child: Any) -> None:
    before, after = [event for event in finished_child.events if isinstance(event, Evaluated)]

    assert (before.when, after.when) == ("before", "after")
    assert [sample.prompt for sample in before.samples] == [sample.prompt for sample in after.samples]
    assert [sample.completion for sample in before.samples] != [sample.completion for sample in after.samples]
    assert before.exact_match[0].total == after.exact_match[0].total == 25


@pytest.fixture(scope="module")
def stopped_child(
    start_child: Callable[..., subprocess.Popen[str]],
    child_spec: RunSpec,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> FinishedChild:
    """A run on a hub model that lies in the download cache, sent SIGTERM at every logging step."""
    folder = tmp_path_factory.mktemp("stopped")
    repository = folder / "hub" / "models--acme--tiny"
    shutil.copytree(tiny_model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    training = child_spec.project.training.model_copy(update={"max_steps": 5000, "save_steps": 5000})
    project = child_spec.project.model_copy(update={"base_model": "acme/tiny", "training": training})

    child = start_child(
        child_spec.model_copy(update={"project": project}), folder / "attempt-1", HF_HUB_CACHE=str(folder / "hub")
    )
    events = []
    assert child.stdout is not None
    for line in child.stdout:
        events.append(parse_event(line))
        if events[-1].kind == "metrics_logged":
            # Asking twice is asking once.
            child.send_signal(signal.SIGTERM)
    return FinishedChild(folder / "attempt-1", events, child.wait(), "")


def test_sigterm_writes_a_checkpoint_and_exits_3(stopped_child: FinishedChild) -> None:
    end, saved = stopped_child.events[-1], stopped_child.events[-2]

    assert stopped_child.status == 3
    assert isinstance(end, RunInterrupted)
    assert isinstance(saved, CheckpointSaved)
    assert (end.step, end.checkpoint) == (saved.step, saved.path)
    assert (Path(saved.path) / "complete").is_file()


def test_a_hub_model_is_held_to_the_commit_that_was_loaded(stopped_child: FinishedChild) -> None:
    written = RunSpec.model_validate_json((stopped_child.run_dir / "spec.json").read_bytes())

    assert written.project.base_model == "acme/tiny"
    assert written.project.revision == COMMIT
    assert json.loads((stopped_child.run_dir / "receipt.json").read_bytes())["revision"] == COMMIT


def test_a_missing_model_ends_as_run_failed_with_code_and_hint_and_exits_1(
    child_spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = child_spec.model_copy(update={"project": child_spec.project.model_copy(update={"base_model": "nowhere"})})
    (tmp_path / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    monkeypatch.setenv("QLORA_MODELS_ROOT", str(tmp_path))
    with (tmp_path / "events.jsonl").open("w") as log, Path(os.devnull).open("w") as nobody:
        status = run(tmp_path, EventWriter(log, nobody, StopSwitch()), StopSwitch())
    end = parse_event((tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1])

    assert status == 1
    assert isinstance(end, RunFailed)
    assert end.code in {"model-not-found", "model-offline"}
    assert end.hint
    assert "Traceback" in capfd.readouterr().err


def test_an_unreadable_specification_is_reported_like_any_failure(
    start_child: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    child = start_child(None, tmp_path / "attempt-1")
    output, _ = child.communicate()

    assert child.returncode == 1
    end = parse_event(output)
    assert isinstance(end, RunFailed)
    assert end.code == "internal"
    assert "spec.json" in end.message


def test_a_known_error_keeps_its_code_and_hint() -> None:
    failed = failure_of(DatasetError("row 3 is broken", hint="Mend it."))

    assert (failed.code, failed.message, failed.hint) == ("dataset", "row 3 is broken", "Mend it.")


def test_an_unknown_error_shows_its_first_line_without_tokens() -> None:
    failed = failure_of(RuntimeError("refused hf_localtesttoken0\nsecond line"))

    assert (failed.code, failed.message) == ("internal", "RuntimeError: refused [redacted]")
    assert failed.hint is not None
    assert "train.log" in failed.hint


def test_a_parent_that_went_away_stops_the_run_and_the_file_goes_on(tmp_path: Path) -> None:
    stop = StopSwitch()
    read_end, write_end = os.pipe()
    with (tmp_path / "events.jsonl").open("w") as log, os.fdopen(write_end, "w") as pipe:
        writer = EventWriter(log, pipe, stop)
        writer.emit(PhaseStarted(phase="data"))
        assert not stop.is_set
        os.close(read_end)

        writer.emit(PhaseStarted(phase="baseline"))
        writer.emit(PhaseStarted(phase="training"))

        assert stop.is_set
        # Nothing may be left in the buffer of a pipe that nobody reads: closing it would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), write_end)
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 3


def test_naming_the_package_loads_no_torch_and_no_queue() -> None:
    code = "import sys, runner.training, runner.training.__main__; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "runner.training" in loaded
    assert not {"torch", "transformers", "redis", "dramatiq", "slack_sdk"} & set(loaded)
