import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

# Read once, when huggingface_hub is imported; no test may depend on the hub's answer.
os.environ["HF_HUB_OFFLINE"] = "1"

from runner.spec import DatasetEntry, ProjectSpec, RunSpec
from runner.training.demo_model import build_demo_model


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
def addition() -> list[dict[str, Any]]:
    """The table of one-digit additions as rows, 100 of them."""
    return [{"prompt": f"What is {a} + {b}?", "completion": str(a + b)} for a in range(10) for b in range(10)]


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., RunSpec]:
    """Write datasets into a projects folder and make the specification that trains on them, one trait each.

    Called with the folder and the rows of each dataset; keywords are sections of the project, `percentages` the shares.
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
        return RunSpec(
            project=ProjectSpec.model_validate(project),
            datasets={
                number: DatasetEntry(name=f"rows {number}", path=f"rows-{number}.jsonl")
                for number in range(1, len(datasets) + 1)
            },
        )

    return make
