import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Read once, when huggingface_hub is imported; no test may depend on the hub's answer.
os.environ["HF_HUB_OFFLINE"] = "1"
# As in a training child: threads that spin while they wait make tests many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# pytest's importlib mode leaves the folder of a test out of the search path; modules that tests share lie here.
sys.path.insert(0, str(Path(__file__).parent))

import stubborn_models  # type: ignore[import-not-found]  # by the line above; mypy names it by its path
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from runner.event_lines import parse_event
from runner.job_events import AnyEvent
from runner.spec import DatasetEntry, ProjectSpec, RunSpec
from runner.training.demo_model import build_demo_model
from tests.training.model_folders import copy_tokenizer


@pytest.fixture(scope="session")
def models_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models root that holds the demo's base model as `tiny`. Read-only: whoever changes a model copies it first."""
    root = tmp_path_factory.mktemp("models")
    build_demo_model(root / "tiny")
    return root


@pytest.fixture(scope="session")
def tiny_model(models_root: Path) -> Path:
    """The folder of the demo's base model."""
    return models_root / "tiny"


@pytest.fixture(scope="session")
def stubborn_root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A models root with `shape-reader` (4-bit fails, 8-bit holds) and `value-reader` (only unquantized holds)."""
    stubborn_models.register()
    root = tmp_path_factory.mktemp("stubborn")
    for name in ("shape-reader", "value-reader"):
        stubborn_models.write_model(root / name, name)
        copy_tokenizer(tiny_model, root / name)
    return root


@pytest.fixture(scope="session")
def prequantized_root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A models root with `tiny-bnb-4bit`: the demo's model, saved in 4 bits."""
    folder = tmp_path_factory.mktemp("prequantized") / "tiny-bnb-4bit"
    settings: Any = BitsAndBytesConfig  # transformers leaves the constructor bare
    model: Any = AutoModelForCausalLM.from_pretrained(
        tiny_model,
        quantization_config=settings(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        device_map={"": "cpu"},
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    copy_tokenizer(tiny_model, folder)
    return folder.parent


@pytest.fixture(scope="session")
def addition() -> list[dict[str, Any]]:
    """The table of one-digit additions as rows, 100 of them."""
    return [{"prompt": f"What is {a} + {b}?", "completion": str(a + b)} for a in range(10) for b in range(10)]


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., RunSpec]:
    """Write datasets into a projects folder and make the specification that trains on them, one trait each.

    Called with the folder and the rows of each dataset; keywords are sections of the project, `percentages` the shares.
    Nothing is held out unless `evaluation` asks for it, so that small tables are trained on whole.
    """

    def make(
        projects_dir: Path, *datasets: list[dict[str, Any]], percentages: Sequence[float] = (), **sections: Any
    ) -> RunSpec:
        projects_dir.mkdir(exist_ok=True)
        traits = []
        for number, rows in enumerate(datasets, start=1):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (projects_dir / f"rows-{number}.jsonl").write_text(text, encoding="utf-8")
            percentage = percentages[number - 1] if percentages else 100.0
            share = {"dataset_id": number, "percentage": float(percentage)}
            traits.append({"trait_type": f"trait {number}", "datasets": [share]})
        project = {"name": "test", "base_model": "tiny", "output_directory": "test", "traits": traits} | sections
        project["evaluation"] = {"held_out_percentage": 0.0} | sections.get("evaluation", {})
        return RunSpec(
            project=ProjectSpec.model_validate(project),
            datasets={
                number: DatasetEntry(name=f"rows {number}", path=f"rows-{number}.jsonl")
                for number in range(1, len(datasets) + 1)
            },
        )

    return make


@dataclass(frozen=True)
class FinishedChild:
    """A training child that has ended."""

    run_dir: Path
    events: list[AnyEvent]
    status: int
    log: str


@pytest.fixture(scope="session")
def child_projects_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The projects folder of `child_spec`. Read-only."""
    return tmp_path_factory.mktemp("child-projects")


@pytest.fixture(scope="session")
def child_spec(make_spec: Callable[..., RunSpec], child_projects_dir: Path, addition: list[dict[str, Any]]) -> RunSpec:
    """Six steps of real 4-bit training with dropout, so that random numbers matter; 20 of 25 rows, 2 held out."""
    return make_spec(
        child_projects_dir,
        addition[::4],
        percentages=[80],
        quantization={"ladder": ["4bit"]},
        lora={"lora_dropout": 0.1, "modules_to_save": ["lm_head"]},
        training={
            "max_steps": 6,
            "per_device_train_batch_size": 6,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_steps": 3,
        },
        evaluation={
            "prompts": ["What is 3 + 4?"],
            "exact_match": [1],
            "max_new_tokens": 4,
            "held_out_percentage": 10.0,
        },
    )


@pytest.fixture(scope="session")
def start_child(models_root: Path, child_projects_dir: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `python -m runner.training` on a specification; events on its standard output."""
    children = []

    def start(spec: RunSpec | None, run_dir: Path, **environment: str) -> subprocess.Popen[str]:
        run_dir.mkdir(parents=True)
        if spec is not None:
            (run_dir / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        folders = {"QLORA_MODELS_ROOT": str(models_root), "QLORA_PROJECTS_DIR": str(child_projects_dir)}
        child = subprocess.Popen(
            [sys.executable, "-m", "runner.training", str(run_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | folders | environment,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture(scope="session")
def finished_child(
    start_child: Callable[..., subprocess.Popen[str]], child_spec: RunSpec, tmp_path_factory: pytest.TempPathFactory
) -> FinishedChild:
    """A whole run in a process of its own. Read-only."""
    run_dir = tmp_path_factory.mktemp("finished") / "attempt-1"
    child = start_child(child_spec, run_dir)
    output, log = child.communicate()
    return FinishedChild(run_dir, [parse_event(line) for line in output.splitlines()], child.returncode, log)
