"""What a project file may say: every key, its unit, its bounds and its default. Pure; reads no file.

Keys are the field's own names: PEFT's for `[lora]`, TRL's and transformers' for `[training]`, bitsandbytes' for
`[quantization]`. `runner.projects` reads the files and turns what pydantic finds into problems with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from typing_extensions import override

from runner.hyperparameters import Lora, Quantization, Training
from runner.layout import FileType, Layout, WrittenFormat
from runner.reports import Record
from runner.row_formats import formats_with
from runner.strict import Contradiction, Spec

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def _is_a_name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError("use 1 to 40 lower-case letters, digits, - and _, starting with a letter or digit")
    return value


def _is_a_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line of printable text")
    if value and not value.strip():
        raise ValueError("must not be blank")
    return value


def _stays_inside(root: str) -> AfterValidator:
    def check(value: str) -> str:
        path = PurePosixPath(value)
        # No parts: empty or `.`, which is the root itself.
        leaves = not path.parts or path.is_absolute() or ".." in path.parts or value.startswith("~")
        if leaves or "\\" in value or value != value.strip() or not value.isprintable():
            raise ValueError(f"must be a relative path inside the {root}, without '..', '~' or a leading '/'")
        return value

    return AfterValidator(check)


_LINE = AfterValidator(_is_a_line)


def _is_no_address(value: str) -> str:
    if "://" in value or "::" in value:
        raise ValueError("must be a path inside the dataset, not an address")
    return value


_IS_NO_ADDRESS = AfterValidator(_is_no_address)


def _is_a_hub_id(value: str) -> str:
    if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", value, re.ASCII):
        raise ValueError("must be a hub dataset's owner/name, such as 'tatsu-lab/alpaca'")
    return value


class DatasetShare(Spec):
    """One dataset of a trait and how much of it to use."""

    dataset_id: int
    """Key in `projects/datasets.toml`."""
    percentage: Annotated[float, Field(gt=0, le=100)] = 100.0
    """Share of that dataset's rows, in per cent, drawn by `training.seed`; at least one row."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """The most rows to use, however many the percentage allows."""
    held_out_percentage: Annotated[float, Field(ge=0, le=50)] | None = None
    """Instead of `evaluation.held_out_percentage` for this share; 0 keeps all its rows in training."""


class Trait(Spec):
    """Something the adapter should learn, and the data that teaches it."""

    trait_type: Annotated[str, Field(min_length=1, max_length=60), _LINE]
    """What is taught, such as `reasoning`; names the group in every report."""
    datasets: Annotated[tuple[DatasetShare, ...], Field(min_length=1, strict=False)]
    """What teaches it, each dataset once."""

    @field_validator("datasets")
    @classmethod
    def _each_dataset_once(cls, shares: tuple[DatasetShare, ...]) -> tuple[DatasetShare, ...]:
        ids = [share.dataset_id for share in shares]
        twice = sorted({dataset_id for dataset_id in ids if ids.count(dataset_id) > 1})
        if twice:
            raise ValueError(f"names dataset {', '.join(map(str, twice))} twice; add up the percentages instead")
        return shares


class Evaluation(Spec):
    """What is asked before and after training, so that a change can be seen."""

    prompts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=20_000)], ...], Field(strict=False, max_length=20)
    ] = ()
    """Answered greedily before and after, shown side by side."""
    exact_match: Annotated[tuple[int, ...], Field(strict=False)] = ()
    """Dataset ids; counts completions, or last answers of conversations, right to the letter, before and after."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 64
    held_out_percentage: Annotated[float, Field(ge=0, le=50)] = 5.0
    """Rows kept out of training to measure the loss on, per cent of each share; first from rows that none draws."""


class Compute(Spec):
    """Where the job runs."""

    pool: Annotated[str, AfterValidator(_is_a_name)] = "gpu"
    """Workers of this pool take the job (`python -m runner worker --pool gpu`)."""
    gpus: Annotated[int, Field(ge=1, le=16)] = 1
    """Processes that train together on one host, each with the whole model on a GPU of its own; the batch grows by as
    much. On a host without GPUs they share its cores: for tests and tiny models."""
    min_gpu_memory_gib: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Memory that each of these GPUs has at least, GiB as `nvidia-smi` counts: a "24 GB" card has 22 to 24. A host
    without GPUs never takes such a job. None: any will do."""


class ProjectSpec(Spec):
    """A project file, complete and checked."""

    name: Annotated[str, AfterValidator(_is_a_name)]
    """What people type after `/qlora start`; equals the file's name without `.toml`."""
    description: Annotated[str, Field(max_length=200), _LINE] = ""
    """One line for `/qlora projects`."""
    base_model: Annotated[str, Field(min_length=1, max_length=200), _LINE]
    """A folder under the models root, else a hub id."""
    revision: Annotated[str, Field(min_length=1, max_length=200), _LINE] | None = None
    """Branch, tag or commit of the hub repository; None for its default branch."""
    model_type: Annotated[str, Field(min_length=1, max_length=60), _LINE] | None = None
    """transformers' model type, such as `llama`; `config.json` decides when absent."""
    training_type: Literal["qlora"] = "qlora"
    output_directory: Annotated[str, Field(max_length=200), _stays_inside("output root")]
    """Folder under the output root."""
    traits: Annotated[
        tuple[Trait, ...],
        Field(
            min_length=1,
            strict=False,
            examples=[[{"trait_type": "reasoning", "datasets": [{"dataset_id": 1, "percentage": 100}]}]],
        ),
    ]
    """What to learn, and from which data."""
    quantization: Quantization = Quantization()
    lora: Lora = Lora()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()

    @override
    def contradictions(self) -> Iterator[Contradiction]:
        if self.training.group_by_length and self.compute.gpus > 1:
            yield Contradiction(
                "goes with compute.gpus = 1: several processes share rows evenly",
                ("training.group_by_length", "compute.gpus"),
            )
        held_out = [
            self.evaluation.held_out_percentage if share.held_out_percentage is None else share.held_out_percentage
            for trait in self.traits
            for share in trait.datasets
        ]
        if self.training.eval_strategy != "no" and not any(held_out):
            yield Contradiction(
                "asks for the loss on held-out rows, but evaluation.held_out_percentage is 0",
                ("training.eval_strategy", "evaluation.held_out_percentage", "traits"),
            )

    @field_validator("base_model")
    @classmethod
    def _names_a_model(cls, value: str) -> str:
        if value.startswith(("/", "~", "-")) or ".." in PurePosixPath(value).parts or value != value.strip():
            raise ValueError("must be a folder under the models root or a hub id such as 'Qwen/Qwen2.5-7B'")
        return value


_Column = Annotated[str, Field(min_length=1, max_length=200)] | None


class Columns(Spec):
    """Our name of a column to the dataset's own, where they differ."""

    messages: _Column = None
    conversations: _Column = None
    prompt: _Column = None
    completion: _Column = None
    instruction: _Column = None
    input: _Column = None
    output: _Column = None
    system: _Column = None
    text: _Column = None


class DatasetEntry(Spec):
    """One entry of `projects/datasets.toml`."""

    name: Annotated[str, Field(min_length=1, max_length=60), _LINE]
    """What reports call it."""
    hub: Annotated[str, AfterValidator(_is_a_hub_id)] | None = None
    """Dataset on the hub, `owner/name`; else `path`."""
    path: Annotated[str, Field(max_length=200), _stays_inside("projects folder")] | None = Field(
        None, validate_default=True
    )
    """Data file or folder, relative to the projects folder; else `hub`."""
    description: Annotated[str, Field(max_length=200), _LINE] = ""
    """What its rows are."""
    revision: Annotated[str, Field(min_length=1, max_length=200), _LINE] | None = None
    """Branch, tag or commit of the hub dataset; None for its default branch."""
    config: Annotated[str, Field(min_length=1, max_length=200), _LINE] | None = None
    """Configuration of a hub dataset or folder, `name` of `datasets.load_dataset`."""
    split: Annotated[str, Field(min_length=1, max_length=200), _LINE] | None = None
    """Split of a hub dataset or folder, such as `train[:10%]`; `train` when absent."""
    data_dir: Annotated[str, Field(max_length=200), _stays_inside("dataset"), _IS_NO_ADDRESS] | None = None
    """Folder of a hub dataset or folder that the data files lie in."""
    data_files: (
        Annotated[
            tuple[Annotated[str, Field(max_length=200), _stays_inside("dataset"), _IS_NO_ADDRESS], ...],
            Field(min_length=1, strict=False),
        ]
        | None
    ) = None
    """Data files of a hub dataset or folder; `*` and `**` stand for any name and any folders."""
    file_type: FileType | None = None
    """What the file is; by its extension when absent."""
    format: WrittenFormat | None = None
    """What the rows are; by the first row when absent."""
    columns: Columns = Columns()
    """How the dataset names its columns."""

    @property
    def source(self) -> str:
        """Where the rows come from, for a sentence."""
        return self.path if self.path is not None else f"hub dataset {self.hub}"

    @property
    def load_keys(self) -> list[str]:
        """The stated keys that only a hub dataset or a folder has."""
        return [key for key in ("config", "split", "data_dir", "data_files") if getattr(self, key) is not None]

    @property
    def layout(self) -> Layout:
        """What the reader has to know."""
        named = self.columns.model_dump(exclude_none=True)
        return Layout(self.file_type, self.format, tuple(named.items()))

    @field_validator("path")
    @classmethod
    def _is_one_of_two_sources(cls, path: str | None, info: ValidationInfo) -> str | None:
        if "hub" not in info.data:
            return path  # it is wrong, which is told already
        if path is None and info.data["hub"] is None:
            raise ValueError("is missing; name a file or folder here, or a dataset on the hub with hub")
        if path is not None and info.data["hub"] is not None:
            raise ValueError("cannot stand beside hub: a dataset is either here or on the hub")
        return path

    @field_validator("revision")
    @classmethod
    def _is_of_the_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        if revision is not None and info.data.get("path") is not None:
            raise ValueError("only a hub dataset has a revision")
        return revision

    @field_validator("file_type")
    @classmethod
    def _is_of_a_file(cls, file_type: FileType | None, info: ValidationInfo) -> FileType | None:
        if file_type is not None and info.data.get("hub") is not None:
            raise ValueError("only a data file has a file_type")
        return file_type

    @field_validator("columns")
    @classmethod
    def _belong_to_one_format(cls, columns: Columns, info: ValidationInfo) -> Columns:
        named = list(columns.model_dump(exclude_none=True))
        possible = formats_with(named)
        written = info.data.get("format")
        if not possible:
            raise ValueError(f"no format has {' and '.join(named)} together")
        if written is not None and written not in possible:
            raise ValueError(f"{written} rows have no {' and '.join(named)}")
        return columns


class DataCopy(Record):
    """A local data file or folder as the submitter saw it."""

    sha256: str
    """`runner.provenance.fingerprint_data`'s."""
    bytes: int
    """Size of the file, or of all files of the folder."""


class RunSpec(Record):
    """All that an attempt needs to know, resolved once at submission and valid on any host.

    Folders of the host (models root, output root, projects folder) are not in it: they come from its settings.
    """

    project: ProjectSpec
    datasets: dict[int, DatasetEntry]
    """The catalog entries that the project names, by dataset id."""
    overrides: dict[str, str] = Field(default_factory=dict)
    """What the requester changed, dotted path to the text typed."""
    unchecked: tuple[int, ...] = ()
    """Ids of the datasets whose rows only a host can check: those of the hub, and folders."""
    stated: tuple[str, ...] = ()
    """Dotted paths that the project file states itself; every other setting is a default."""
    data: dict[int, DataCopy] = Field(default_factory=dict)
    """Local data by dataset id, as the submitter saw them (`runner.data_copies`); empty where nobody has looked."""
    projects_revision: str | None = None
    """Git commit of the submitter's projects folder, None without one; see `runner.provenance.git_revision`."""
