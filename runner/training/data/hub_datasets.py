"""Datasets that the `datasets` library loads: of the hub, at one commit, and folders of data files.

Rows go through the same reader as those of a data file. No code of a dataset is ever run: the library's versions that
we take have no loading scripts any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from runner.errors import DatasetError, DiskFullError, TrainingError, joined
from runner.provenance import fingerprint_data
from runner.row_files import RawRow
from runner.row_formats import Row, RowReader
from runner.rows import DatasetRows, collect_rows
from runner.spec import DatasetEntry, RunSpec
from runner.training.loading.failure_marks import is_disk_full, is_out_of_memory
from runner.training.pins import is_commit


def pin_datasets(spec: RunSpec) -> RunSpec:
    """Replace the branch or tag of each hub dataset by the commit that it means now.

    Raises:
        DatasetError: The hub has no such dataset or revision, refuses, or cannot be reached; tells of all of them.
    """
    pinned = {}
    refused: list[TrainingError] = []
    for dataset_id, entry in spec.datasets.items():
        if entry.hub is not None and not is_commit(entry.revision):
            try:
                commit = HfApi().dataset_info(entry.hub, revision=entry.revision).sha
            except Exception as error:
                refusal = _refusal(error, entry)
                if not isinstance(refusal, TrainingError):
                    raise
                refusal.__cause__ = error
                refused.append(refusal)
                continue
            pinned[dataset_id] = entry.model_copy(update={"revision": commit})
    if refused:
        raise joined(refused) from refused[0].__cause__
    return spec.model_copy(update={"datasets": spec.datasets | pinned}) if pinned else spec


def load_hub_dataset(entry: DatasetEntry) -> DatasetRows:
    """Download a hub dataset, or take it from this host's cache, and read it whole.

    Args:
        entry: From `pin_datasets`: its revision is a commit.

    Raises:
        DatasetError: It cannot be had, has no such split or configuration, or rows are malformed.
        DiskFullError: It does not fit into the cache.
    """
    if entry.hub is None or entry.revision is None:
        raise AssertionError("only a pinned hub dataset can be loaded")
    with _explained(entry), _without_bars():
        builder = datasets.load_dataset_builder(entry.hub, revision=entry.revision, **_arguments(entry))
        if builder.hash != entry.revision:
            builder = _cached(builder, entry.hub, entry.revision)
        table = _prepared(builder, entry)
    reader = RowReader(entry.layout)
    row_format, rows = collect_rows(_raw(table, reader), reader, _source(entry))
    return DatasetRows(row_format, rows, _fingerprint(rows))


def load_folder(entry: DatasetEntry, folder: Path) -> DatasetRows:
    """Read a folder of data files whole, as the library reads a repository of the same files.

    Raises:
        DatasetError: It holds no data files, has no such split or configuration, or rows are malformed.
        DiskFullError: It does not fit into the library's cache.
    """
    with _explained(entry), _without_bars():
        table = _prepared(datasets.load_dataset_builder(str(folder.absolute()), **_arguments(entry)), entry)
    reader = RowReader(entry.layout)
    row_format, rows = collect_rows(_raw(table, reader), reader, _source(entry))
    return DatasetRows(row_format, rows, fingerprint_data(folder))


def _arguments(entry: DatasetEntry) -> dict[str, Any]:
    return {
        "name": entry.config,
        "data_dir": entry.data_dir,
        "data_files": list(entry.data_files) if entry.data_files is not None else None,
    }


def _cached(newest: Any, hub: str, commit: str) -> Any:
    """The builder of a commit in this host's cache: when the hub does not answer, the library takes the newest there.

    Raises:
        ConnectionError: The cache does not have that commit.
    """
    folder = Path(newest.cache_dir).with_name(commit)
    if not folder.is_dir():
        raise ConnectionError(f"the cache has commit {newest.hash}, not {commit}")
    *_, config, version, _ = folder.parts
    return Cache(repo_id=hub, dataset_name=newest.dataset_name, config_name=config, version=version, hash=commit)


def _prepared(builder: Any, entry: DatasetEntry) -> Any:
    """What `datasets.load_dataset` does with a builder."""
    builder.download_and_prepare()
    return builder.as_dataset(split=entry.split or "train")


def _raw(table: Any, reader: RowReader) -> Iterator[RawRow]:
    names = table.column_names
    read = [name for name in names if name in reader.columns]
    others: Row = {name: None for name in names if name not in read}
    if not read:
        # What the first row lacks, every row lacks.
        yield from [RawRow(1, None, others)] if len(table) else []
        return
    # Columns that nobody looks at may be pictures, which would be decoded.
    for row, value in enumerate(table.select_columns(read), start=1):
        yield RawRow(row, None, others | value)


def _fingerprint(rows: Iterable[Row]) -> str:
    """SHA-256 over the rows as they are trained on."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _source(entry: DatasetEntry) -> str:
    split = f"split {entry.split or 'train'!r}"
    if entry.hub is None:
        return f"The folder {entry.path}, {split}"
    return f"The hub dataset {entry.hub!r} at {(entry.revision or '')[:12]}, {split}"


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the library's progress bars out of train.log, where each redraw is a piece of one endless line."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _explained(entry: DatasetEntry) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _refusal(error, entry) from error


def _refusal(error: Exception, entry: DatasetEntry) -> Exception:
    """Our error for whatever the library or the hub raised."""
    if is_out_of_memory(error):
        return error
    if is_disk_full(error):
        return DiskFullError(
            f"The disk is full: the {entry.source} does not fit into the cache {datasets.config.HF_DATASETS_CACHE}.",
            hint="Free some space there or point HF_HOME to a larger disk.",
        )
    refused = _hub_refusal(error, entry.hub, entry.revision) if entry.hub is not None else None
    if refused is not None:
        return DatasetError(refused[0], hint=refused[1])
    stated_wrong = isinstance(error, ValueError | FileNotFoundError)
    return DatasetError(
        f"{_source(entry)} cannot be loaded: {_words(error)}.",
        hint="Correct it in datasets.toml."
        if stated_wrong
        else "Mend the data files, or start with another dataset_id.",
    )


def _hub_refusal(error: Exception, hub: str, revision: str | None) -> tuple[str, str] | None:
    """Message and hint for a hub that refuses or is not there; None for anything else."""
    address = f"{constants.ENDPOINT}/datasets/{hub}"
    links = list(_chain(error))

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in links)

    pin = "pin revision in datasets.toml to a commit that this host has loaded before"
    message = hint = None
    # The datasets library keeps of some refusals no more than the words.
    if met(GatedRepoError) or "gated dataset" in str(error):
        message = f"The hub dataset {hub!r} is gated, and this host's token may not read it."
        hint = f"Ask for access at {address} and set HF_TOKEN on the host."
    elif met(RevisionNotFoundError):
        message = f"The hub dataset {hub!r} has no revision {revision!r}."
        hint = f"Correct revision in datasets.toml; what there is stands at {address}."
    elif met(RepositoryNotFoundError, DatasetNotFoundError):
        message = f"The hub does not know the dataset {hub!r}, or this host's token may not see it."
        hint = f"Check the spelling at {address}; a private dataset needs HF_TOKEN on the host."
    elif constants.HF_HUB_OFFLINE or met(OfflineModeIsEnabled):
        message = f"The hub dataset {hub!r} is not on this host, which is in offline mode (HF_HUB_OFFLINE)."
        hint = f"Unset HF_HUB_OFFLINE, or {pin}."
    elif any(isinstance(link, HfHubHTTPError) and not isinstance(link, LocalEntryNotFoundError) for link in links):
        message, hint = f"The hub refuses the dataset {hub!r}: {_words(error)}.", "Try again later."
    elif met(ConnectionError, TimeoutError) or any(_is_transport(link) for link in links):
        message = f"The hub dataset {hub!r} is not on this host, and the hub cannot be reached at {constants.ENDPOINT}."
        hint = f"Check the host's network, or {pin}."
    return (message, hint) if message and hint else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_transport(link: BaseException) -> bool:
    """Whether the HTTP library failed before there was an answer; which library depends on the hub client's version."""
    return type(link).__module__.split(".")[0] in {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}


def _words(error: BaseException) -> str:
    """A library's error in one line, with what is behind it where the error itself says nothing."""
    links = [error, error.__cause__] if isinstance(error, DatasetGenerationError) else [error]
    parts = [" ".join(str(link).split()) for link in links if link is not None]
    # What follows is a list of a hundred extensions.
    parts = [part.partition(" with any supported extension")[0].rstrip(".")[:300] for part in parts]
    return ": ".join(part for part in parts if part) or type(error).__name__
