"""The training child with a limit on its memory: `python limited_child.py RUN_DIR SHARE`.

It first measures what one optimizer step of RUN_DIR's specification takes beside the loaded model. When the run itself
comes to its training, the process may take SHARE of that and no more; after the last step the limit is lifted.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

from runner.events import ChildEvent, MetricsLogged, TrainingStarted
from runner.settings import load_settings
from runner.spec import RunSpec
from runner.training import __main__ as child
from runner.training.data.mix import mix_data
from runner.training.loading.protected_load import protected_load
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import build_trainer


def held(name: str) -> int:
    """Bytes, from the kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure(spec: RunSpec) -> int:
    """Bytes that one optimizer step takes at its peak."""
    settings = load_settings()
    with (
        tempfile.TemporaryDirectory() as scratch,
        protected_load(spec, models_root=settings.models_root, emit=lambda _: None) as loaded,
    ):
        training = spec.project.training.model_copy(update={"max_steps": 1})
        trainer = build_trainer(
            add_lora(loaded.model, spec.project.lora, training.seed),
            loaded.tokenizer,
            mix_data(spec, loaded.tokenizer, settings.projects_dir),
            training,
            output_dir=Path(scratch),
            compute_dtype=loaded.receipt.compute_dtype,
            callbacks=[],
        )
        before = held("VmSize")
        trainer.train()
        # Addresses and not resident pages: the limit counts what is allocated, and some scratch is never written to.
        return held("VmPeak") - before


def main(run_dir: Path, share: float) -> int:
    """Measure, then run the child as it is."""
    step_bytes = measure(RunSpec.model_validate_json((run_dir / "spec.json").read_bytes()))
    emit = child.EventWriter.emit

    def emit_and_limit(self: child.EventWriter, event: ChildEvent) -> None:
        emit(self, event)
        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
        if isinstance(event, TrainingStarted) and limit == resource.RLIM_INFINITY:
            limit = held("VmData") + int(step_bytes * share)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
        elif isinstance(event, MetricsLogged) and event.step == event.total_steps:
            resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    child.EventWriter.emit = emit_and_limit  # type: ignore[method-assign]
    return child.main([str(run_dir)])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2])))
