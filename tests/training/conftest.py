import os
from pathlib import Path

import pytest

# Read once, when huggingface_hub is imported; no test may depend on the hub's answer.
os.environ["HF_HUB_OFFLINE"] = "1"

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
