"""`check PROJECT [key=value …] [--json]`: is a project valid, and if not, everything that is wrong. Exit 0 or 2."""

from __future__ import annotations

import argparse
import json

from runner.cli.project import add_project_arguments, named_project, problems_json
from runner.errors import SpecError, UsageError
from runner.spec import RunSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_project_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Check the project and say what was found."""
    try:
        spec = named_project(arguments).load()
    except (SpecError, UsageError) as error:
        if not arguments.json:
            raise
        print(problems_json(error))
        return 2
    if arguments.json:
        print(json.dumps({"valid": True, "spec": spec.model_dump(mode="json"), "problems": []}, indent=2))
    else:
        print(_summary(spec))
    return 0


def _summary(spec: RunSpec) -> str:
    project = spec.project
    lines = [
        f"{project.name} is valid.",
        f"  base model   {project.base_model}" + (f" ({project.model_type})" if project.model_type else ""),
        f"  quantization {' → '.join(project.quantization.ladder)}",
        f"  adapter      r={project.lora.r}, lora_alpha={project.lora.lora_alpha}",
        f"  output       {project.output_directory}",
        f"  pool         {project.compute.pool}"
        + (f", {project.compute.gpus} GPUs" if project.compute.gpus > 1 else "")
        + (f", GPU memory of {least:g} GiB at least" if (least := project.compute.min_gpu_memory_gib) else ""),
    ]
    lines += [
        f"  data         {trait.trait_type}: {share.percentage:g} % of {_dataset(spec, share.dataset_id)}"
        for trait in project.traits
        for share in trait.datasets
    ]
    lines += [f"  override     {key}={value}" for key, value in spec.overrides.items()]
    return "\n".join(lines)


def _dataset(spec: RunSpec, dataset_id: int) -> str:
    entry = spec.datasets[dataset_id]
    return (
        f"{entry.name} ({entry.source}; its rows are checked on the host)"
        if dataset_id in spec.unchecked
        else entry.name
    )
