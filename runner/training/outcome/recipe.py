"""How to load and ask an adapter as it was trained and verified, in Python to be copied from its card. Pure."""

from __future__ import annotations

import json

from runner.reports import LoadReceipt
from runner.spec import Evaluation, ProjectSpec
from runner.training.loading.quantization_config import DEQUANTIZED


def render_recipe(project: ProjectSpec, receipt: LoadReceipt, *, as_chat: bool) -> str:
    """Write the card's section on use, as Markdown.

    Args:
        project: With the commit that a hub model was loaded from.
        receipt: Of the base model that was trained on.
        as_chat: Whether prompts are asked as a user's turn.
    """
    at = f", revision={json.dumps(project.revision)}" if project.revision is not None else ""
    name = json.dumps(project.base_model) + at
    options = [name]
    names, before = ["AutoModelForCausalLM", "AutoTokenizer"], ""
    if receipt.config_left_out:
        names.append(receipt.config_class)
        options.append(f"config={receipt.config_class}.from_dict(values)")
        before = (
            f"# transformers cannot read this base model's config.json as it is: {', '.join(receipt.config_left_out)} "
            "must be left out.\n"
            f"values, _ = {receipt.config_class}.get_config_dict({name})\n"
            + "".join(f"values.pop({json.dumps(key)}, None)\n" for key in receipt.config_left_out)
        )
    options.append(f"dtype={json.dumps(receipt.compute_dtype)}")
    unpacked = DEQUANTIZED.get(receipt.stored_quantization or "")
    if receipt.rung != "none":
        names.append("BitsAndBytesConfig")
        before += "quantization = BitsAndBytesConfig(\n" + _rung_options(project, receipt) + ")\n"
    elif unpacked is not None:
        names += [unpacked, "PretrainedConfig"]
        before += (
            "# The files are stored quantized. Unasked, a GPU that can would compute with them as they are.\n"
            f'stored = PretrainedConfig.get_config_dict({name})[0]["quantization_config"]\n'
            f'quantization = {unpacked}.from_dict({{**stored, "dequantize": True}})\n'
        )
    if receipt.rung != "none" or unpacked is not None:
        options.append("quantization_config=quantization")
    if project.revision is None:
        before += (
            f"# {json.dumps(project.base_model)} is a folder under the models root of the host that trained it: give "
            "its path.\n"
        )
    return f"""## Use

As it was trained and verified:

```python
from peft import PeftModel
from transformers import {", ".join(names)}

{before}base = AutoModelForCausalLM.from_pretrained({", ".join(options)})
model = PeftModel.from_pretrained(base, "this/folder").eval()
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```

To ask it{" as a user" if as_chat else ""}, as it was trained:

```python
{_asking(project.evaluation, as_chat=as_chat)}```
"""


def _rung_options(project: ProjectSpec, receipt: LoadReceipt) -> str:
    settings = project.quantization
    if receipt.rung == "8bit":
        options = ["load_in_8bit=True", f"llm_int8_threshold={settings.llm_int8_threshold}"]
    else:
        options = [
            "load_in_4bit=True",
            f"bnb_4bit_quant_type={json.dumps(settings.bnb_4bit_quant_type)}",
            f"bnb_4bit_use_double_quant={settings.bnb_4bit_use_double_quant}",
            f"bnb_4bit_compute_dtype={json.dumps(receipt.compute_dtype)}",
        ]
    return "".join(f"    {one},\n" for one in options)


def _asking(evaluation: Evaluation, *, as_chat: bool) -> str:
    prompt = json.dumps(evaluation.prompts[0] if evaluation.prompts else "…", ensure_ascii=False)
    lines = [f"prompt = {prompt}"]
    if as_chat:
        turn = '[{"role": "user", "content": prompt}]'
        lines += [
            f"text = tokenizer.apply_chat_template({turn}, tokenize=False, add_generation_prompt=True)",
            'inputs = tokenizer(text, add_special_tokens=False, return_token_type_ids=False, return_tensors="pt")',
        ]
    else:
        lines.append('inputs = tokenizer(prompt, return_token_type_ids=False, return_tensors="pt")')
    options = f"max_new_tokens={evaluation.max_new_tokens}, do_sample=False"
    lines += [
        f"answer = model.generate(**inputs.to(model.device), {options})",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "".join(f"{line}\n" for line in lines)
