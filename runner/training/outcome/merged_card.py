"""The README of a merged model's folder: what it is, and what merging has changed. Pure."""

from __future__ import annotations

import json

from runner.manifest import Manifest
from runner.merging import MergeReport
from runner.reports import RUNG_WORDS


def render_merged_card(manifest: Manifest, report: MergeReport) -> str:
    """Write the card as Markdown with the front matter that model hubs read."""
    project = manifest.spec.project
    rows = [
        ("what training changed: base model with and without the adapter", f"{report.adapter_difference:.4g}"),
        (
            f"what merging rounds: merged and adapter on the base model in {report.dtype}",
            f"{report.rounding_difference:.4g}",
        ),
    ]
    if report.trained_difference is not None:
        words = RUNG_WORDS[report.rung]
        rows.append(
            (f"what the other base changes: merged and trained model ({words})", f"{report.trained_difference:.4g}")
        )
    table = "".join(f"| {what} | {value} |\n" for what, value in rows)
    return f"""---
base_model: {json.dumps(project.base_model)}
library_name: transformers
pipeline_tag: text-generation
tags: [qlora, sft, merged]
---

# {project.name}, merged

`{project.base_model}` in {report.dtype}, with the LoRA adapter of the project `{project.name}` merged into its weights.
{_numerics(report)}

| largest difference of a logit | |
| --- | --- |
{table}
Measured on {report.positions} positions of a few texts, by a fresh process that loaded this folder with transformers
alone.{_agreement(report)}
{_untied(report)}
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder", dtype={json.dumps(report.dtype)})
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```

`ADAPTER.md` is the adapter's own card: data, settings, results. `manifest.json` holds all that it was made from.
"""


def _numerics(report: MergeReport) -> str:
    if report.rung == "none":
        return "The adapter was trained on the same unquantized weights, so merging only rounds."
    return (
        f"The adapter was trained on that model with {RUNG_WORDS[report.rung]} and has learned to work on its rounded "
        "weights; here it sits on the unrounded ones, so answers can differ from those of the training. Where they "
        "must not, use the adapter on the quantized model."
    )


def _agreement(report: MergeReport) -> str:
    if report.same_tokens is None:
        return " What the trained model answered is not kept any more, so there is no comparison with it."
    return f"\nMerged and trained model find the same token most likely at {report.same_tokens} of them."


def _untied(report: MergeReport) -> str:
    if not report.untied:
        return ""
    return (
        "\nIn the base model input and output embeddings are one tensor; here they are two, because one was trained.\n"
    )
