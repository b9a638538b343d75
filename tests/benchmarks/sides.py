"""The two sides that benchmarks compare: our training as the pipeline builds it, and a plain TRL script.

Each is measured in a process of its own, so nothing here loads torch before it is called.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def our_trainer(
    folder: Path, rows: list[dict[str, str]], training: dict[str, Any], callbacks: Sequence[Any] = ()
) -> Iterator[tuple[Any, float]]:
    """Load `folder/models/base` in 4 bits and build our trainer, both with our defaults.

    Args:
        folder: Gets the rows' file and the trainer's output.
        rows: Each with `prompt` and `completion`.
        training: What the project says under `[training]`.
        callbacks: For the trainer.

    Yields:
        The trainer, and the seconds from the model's folder to the model.
    """
    from runner.spec import DatasetEntry, ProjectSpec, RunSpec  # noqa: PLC0415  # see the module's docstring
    from runner.training.data.mix import mix_data  # noqa: PLC0415
    from runner.training.loading.protected_load import protected_load  # noqa: PLC0415
    from runner.training.loop.lora import add_lora  # noqa: PLC0415
    from runner.training.loop.trainer import build_trainer  # noqa: PLC0415

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    project = {
        "name": "bench",
        "base_model": "base",
        "output_directory": "bench",
        "traits": [{"trait_type": "bench", "datasets": [{"dataset_id": 1}]}],
        "training": training,
        "quantization": {"ladder": ["4bit"]},
        "evaluation": {"held_out_percentage": 0.0},
    }
    spec = RunSpec(
        project=ProjectSpec.model_validate(project), datasets={1: DatasetEntry(name="rows", path="rows.jsonl")}
    )
    started = time.perf_counter()
    with protected_load(spec, models_root=folder / "models", emit=lambda _event: None) as loaded:
        load_s = time.perf_counter() - started
        trainer = build_trainer(
            add_lora(loaded.model, spec.project.lora, spec.project.training.seed),
            loaded.tokenizer,
            mix_data(spec, loaded.tokenizer, folder),
            spec.project.training,
            output_dir=folder / "ours",
            compute_dtype=loaded.receipt.compute_dtype,
            callbacks=callbacks,
        )
        yield trainer, load_s


def import_plain_trl() -> Any:
    """The module of the plain script, which lies among the tests that compare with it."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "training"))
    import plain_trl  # type: ignore[import-not-found]  # noqa: PLC0415  # by the line above

    return plain_trl


def in_a_fresh_process(module: str, side: str, *words: str) -> dict[str, Any]:
    """Run `python -m tests.benchmarks.MODULE --side SIDE …` and read the JSON object in its last line."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", "--side", side, *words]
    environment = dict(os.environ) | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
