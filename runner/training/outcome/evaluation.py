"""Asks the model before and after training, greedily, and leaves no trace in the training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import PeftModel
from transformers import GenerationConfig

from runner.errors import DatasetError
from runner.events import Evaluated
from runner.reports import ExactMatch, Sample
from runner.spec import RunSpec
from runner.training.data.encoding import encode_answered, encode_question
from runner.training.data.mix import HeldOut
from runner.training.data.reading import read_datasets
from runner.training.outcome.fitting import Fitting
from runner.training.outcome.held_out import measure_losses
from runner.training.outcome.inference import untouched
from runner.training.stopping import StopSwitch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 32
"""Questions answered at once, where they fit."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote after a question."""

    text: str
    ended: bool
    """Whether it ended by itself, with an end token."""


@dataclass(frozen=True, slots=True)
class Table:
    """A dataset of which every completion is checked."""

    dataset_id: int
    name: str
    questions: list[list[int]]
    completions: list[str]
    max_new_tokens: int
    """Just enough for the longest completion and its end token: whoever writes more is wrong anyway."""
    stripped: bool = False
    """Whether white space around an answer does not count: a chat template puts or cuts it as it likes."""


@dataclass(frozen=True, slots=True)
class Questions:
    """All that is asked, encoded once so that both times ask the same."""

    prompts: tuple[str, ...]
    encoded: list[list[int]]
    max_new_tokens: int
    tables: list[Table]


def prepare_questions(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, projects_dir: Path, *, as_chat: bool
) -> Questions:
    """Encode the prompts and the tables of `[evaluation]`.

    Args:
        spec: The attempt's specification.
        tokenizer: As `mix_data` left it.
        projects_dir: The folder that data paths are relative to.
        as_chat: Ask the prompts as a user's turn; tables are asked as their rows are trained.

    Raises:
        DatasetError: A table is missing, malformed, or holds plain text.
    """
    evaluation = spec.project.evaluation
    tables = []
    for dataset_id, file in read_datasets(spec, evaluation.exact_match, projects_dir).items():
        entry = spec.datasets[dataset_id]
        if file.format == "text":
            raise DatasetError(
                f"evaluation.exact_match names dataset {dataset_id} ({entry.source}), which holds plain text.",
                hint="Only a completion, or the last answer of a conversation, can be right to the letter.",
            )
        questions, completions = encode_answered(tokenizer, file.format, file.rows)
        longest = max(len(ids) for ids in tokenizer(completions, add_special_tokens=False)["input_ids"])
        as_turns = file.format == "messages"
        tables.append(Table(dataset_id, entry.name, questions, completions, longest + 1, stripped=as_turns))
    return Questions(
        prompts=evaluation.prompts,
        encoded=[encode_question(tokenizer, prompt, as_chat=as_chat) for prompt in evaluation.prompts],
        max_new_tokens=evaluation.max_new_tokens,
        tables=tables,
    )


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    *,
    when: Literal["before", "after"],
    stop: StopSwitch,
    held_out: Sequence[HeldOut] = (),
    batch_size: int = 1,
) -> Evaluated:
    """Answer the prompts, count the completions that are right to the letter, and measure the held-out losses.

    Args:
        model: With or without its adapter, in whatever mode; it comes back as it was.
        tokenizer: The one that encoded the questions.
        questions: From `prepare_questions`.
        when: For the event.
        stop: Asked before every batch.
        held_out: From `mix_data`.
        batch_size: Of these rows, rows at once.

    Raises:
        StopRequestedError: The switch was set.
    """
    with untouched(model):
        losses = measure_losses(
            model,
            held_out,
            batch_size=batch_size,
            pad_token_id=tokenizer.pad_token_id,
            before_batch=stop.raise_if_set,
        )
        fitting = Fitting(BATCH_SIZE)
        answers = _answer(model, tokenizer, questions.encoded, questions.max_new_tokens, stop=stop, fitting=fitting)
        matches = []
        for table in questions.tables:
            given = _answer(model, tokenizer, table.questions, table.max_new_tokens, stop=stop, fitting=fitting)
            correct = sum(
                answer.ended and (answer.text.strip() if table.stripped else answer.text) == completion
                for answer, completion in zip(given, table.completions, strict=True)
            )
            matches.append(
                ExactMatch(
                    dataset_id=table.dataset_id, dataset_name=table.name, correct=correct, total=len(table.completions)
                )
            )
    samples = tuple(
        Sample(prompt=prompt, completion=_shown(answer.text))
        for prompt, answer in zip(questions.prompts, answers, strict=True)
    )
    return Evaluated(when=when, samples=samples, exact_match=tuple(matches), held_out=losses)


def _shown(answer: str) -> str:
    """The answer without control characters: an untrained model writes any, and terminals and files obey some."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in answer)


def _answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[list[int]],
    max_new_tokens: int,
    *,
    stop: StopSwitch,
    fitting: Fitting,
) -> list[Answer]:
    """Go on from every question, in batches padded on the left, longest questions first."""
    ends = _end_tokens(model, tokenizer)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it bare
        do_sample=False,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    order = sorted(range(len(questions)), key=lambda index: -len(questions[index]))
    answers: dict[int, Answer] = {}
    while order:
        stop.raise_if_set()
        batch = order[: fitting.rows]
        asked = [questions[index] for index in batch]
        written = fitting.attempt(len(batch), partial(_go_on, model, asked, settings))
        if written is None:
            continue
        order = order[len(batch) :]
        for index, tokens in zip(batch, written, strict=True):
            end = next((place for place, token in enumerate(tokens) if token in ends), None)
            text = tokenizer.decode(tokens[:end], skip_special_tokens=True)
            answers[index] = Answer(str(text), ended=end is not None)
    return [answers[index] for index in range(len(questions))]


def _go_on(model: Any, questions: Sequence[list[int]], settings: GenerationConfig) -> list[list[int]]:
    """The tokens that the model writes after each question, in one batch."""
    width = max(map(len, questions))
    padding = [width - len(question) for question in questions]
    pad: Any = settings.pad_token_id
    input_ids = torch.tensor([[pad] * gap + question for gap, question in zip(padding, questions, strict=True)])
    attention_mask = torch.tensor([[0] * gap + [1] * (width - gap) for gap in padding])
    with _no_other_settings(model, settings):
        output = model.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask.to(model.device),
            generation_config=settings,
        )
    tokens: list[list[int]] = output[:, width:].tolist()
    return tokens


@contextmanager
def _no_other_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Keep the model's own generation settings out, which fill whatever a caller leaves at its default.

    transformers 4.57 takes `do_sample=False` for such a default, so a model that ships `do_sample: true`, as Llama 3
    does, would draw its answers at random.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own = base.generation_config
    base.generation_config = settings
    try:
        yield
    finally:
        base.generation_config = own


def _end_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a text: instruct models often have one for a turn and one for the text."""
    own = model.generation_config.eos_token_id
    ends = set(own if isinstance(own, list) else [] if own is None else [own])
    return ends | ({tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set())
