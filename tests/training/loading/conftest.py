from collections.abc import Callable
from pathlib import Path

import pytest

from runner.spec import RunSpec


@pytest.fixture
def make(make_spec: Callable[..., RunSpec], tmp_path: Path) -> Callable[..., RunSpec]:
    """Make a specification whose data nobody reads."""
    return lambda **sections: make_spec(tmp_path / "projects", [{"prompt": "a", "completion": "b"}], **sections)
