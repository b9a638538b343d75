"""Where a base model's files are: a folder under the models root, else a snapshot of a hub repository.

A hub repository is downloaded in two steps, the small files first, so that a wrong tokenizer or config shows before
gigabytes have travelled. Both steps use one commit. Everything after this module reads local files only.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from runner.errors import ConfigError, DiskFullError, MemoryExhaustedError, ModelAccessError, ModelFilesError
from runner.spec import RunSpec
from runner.training.loading.failure_marks import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS = ["*.safetensors"]
# Copies of the weights in another layout, and whatever lies in subfolders.
_NEVER = ["*/*", "consolidated*"]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model whose small files are on this host."""

    name: str
    """As the project names it."""
    folder: Path
    """Where its files are."""
    revision: str | None
    """Commit of the hub snapshot, None for a folder under the models root."""

    def fetch_weights(self) -> None:
        """Download the weights of a hub model, at the commit that its small files came from.

        Raises:
            ModelAccessError: The hub refuses or cannot be reached.
            DiskFullError: They do not fit.
        """
        if self.revision is not None:
            _download(self.name, self.revision, _WEIGHTS)

    def bytes_to_fetch(self) -> int:
        """Bytes that `fetch_weights` would download: those of the hub repository that are not in this host's cache.

        Raises:
            ModelAccessError: The hub refuses or cannot be reached.
            ModelFilesError: Files of a local model, or on a host in offline mode, are missing or damaged.
        """
        if self.revision is None or constants.HF_HUB_OFFLINE:
            self.read_weight_shapes()
            return 0
        with suppress(ModelFilesError):
            self.read_weight_shapes()
            return 0
        try:
            info = HfApi().model_info(self.name, revision=self.revision, files_metadata=True)
        except Exception as error:
            _explain(error, self.name, self.revision)
            raise
        return sum(
            file.size or 0
            for file in info.siblings or []
            if _holds_weights(file.rfilename) and not (self.folder / file.rfilename).is_file()
        )

    def read_config(self) -> dict[str, Any]:
        """Read config.json.

        Raises:
            ConfigError: It is missing or no JSON object.
        """
        path = self.folder / "config.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(
                f"The base model {self.name!r} has no config.json in {self.folder}.",
                hint="Copy the whole model, config.json included, or correct base_model.",
            ) from error
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON: {error}.", hint="Fetch the model's files again.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds no JSON object.", hint="Fetch the model's files again.")
        return values

    def read_weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Read the header of every weight file, so that a missing or cut file is named before anything is loaded.

        Returns:
            Tensor name to shape, as stored: a 4-bit checkpoint packs two elements into one.

        Raises:
            ModelFilesError: A file is missing, cut or damaged, or there is none in the safetensors format.
            MemoryExhaustedError: A file cannot be mapped into memory.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self._weight_files():
            try:
                with safe_open(path, framework="pt") as tensors:
                    names = list(tensors.keys())
                    shapes.update((name, tuple(tensors.get_slice(name).get_shape())) for name in names)
            except (SafetensorError, OSError) as error:
                if is_out_of_memory(error):
                    raise MemoryExhaustedError(
                        f"This process may not even map the weight file {path} into its memory.",
                        hint="Use a smaller base model or a host with more memory, or raise the process' limit.",
                    ) from error
                raise ModelFilesError(
                    f"The weight file {path} is incomplete or damaged: {error}.",
                    hint="Delete it and fetch it again; a copy that was interrupted looks like this.",
                ) from error
        return shapes

    def read_tensor(self, names: Collection[str]) -> Tensor | None:
        """Read one tensor.

        Args:
            names: What it may be called.

        Returns:
            None where no file on this host holds it. Files that are missing or damaged are left for loading to name.
        """
        try:
            for path in self._weight_files():
                with safe_open(path, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118  # no mapping
                        if name in names:
                            tensor: Tensor = tensors.get_tensor(name)
                            return tensor
        except (ModelFilesError, SafetensorError, OSError):
            logger.info("The weights of %s cannot be read yet.", self.name, exc_info=True)
        return None

    def _weight_files(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise ModelFilesError(
                    f"The weight index {index} cannot be read.", hint="Fetch the model's files again."
                ) from error
        else:
            names = ["model.safetensors"]
        if foreign := [name for name in names if not _is_weight_file(name)]:
            raise ModelFilesError(
                f"The weight index {index} names {foreign[0]!r}, which is no safetensors file beside it.",
                hint="Fetch the model's files again. Only weights in the safetensors format are read: the older "
                "formats can run code while they load.",
            )
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise ModelFilesError(
                f"The base model {self.name!r} lacks {', '.join(missing[:3])}"
                f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''} in {self.folder}.",  # noqa: PLR2004
                hint="Fetch the model's files again. Only weights in the safetensors format are read: the older "
                "formats can run code while they load.",
            )
        return [self.folder / name for name in names]


def _is_weight_file(name: object) -> bool:
    """Whether an index may name this file: in the one format that holds no code, and in the model's own folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _holds_weights(name: str) -> bool:
    """Whether this file of a hub repository is among those that `fetch_weights` downloads."""
    return "/" not in name and not name.startswith("consolidated") and name.endswith(".safetensors")


def locate_base_model(spec: RunSpec, models_root: Path) -> BaseModel:
    """Find the project's base model and bring its small files to this host.

    Args:
        spec: Names the model and, for the hub, its revision.
        models_root: Searched first.

    Raises:
        ModelAccessError: Neither place has it, or the hub refuses or cannot be reached.
        DiskFullError: No space for the download.
    """
    name = spec.project.base_model
    folder = models_root / name
    if folder.is_dir():
        return BaseModel(name, folder.resolve(), None)
    try:
        snapshot = Path(_download(name, spec.project.revision, _SMALL_FILES))
    except ModelAccessError as error:
        raise ModelAccessError(
            error.message, hint=f"Looked in {folder} first, which does not exist. {error.hint}", code=error.code
        ) from error.__cause__
    return BaseModel(name, snapshot, snapshot.name)


def _download(name: str, revision: str | None, patterns: list[str]) -> str:
    try:
        return snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=_NEVER)
    except Exception as error:
        _explain(error, name, revision)
        raise


def _explain(error: Exception, name: str, revision: str | None) -> None:
    """Raise our error for what the hub client is known to raise; return for anything else."""
    address = f"{constants.ENDPOINT}/{name}"
    place = f"{name!r} at revision {revision!r}" if revision else repr(name)
    # The client reports a refusal only after it has searched its cache, as the cause of what it did not find there.
    chain = [error, error.__cause__, error.__context__]

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    def refuse(code: str, message: str, hint: str) -> NoReturn:
        raise ModelAccessError(message, hint=hint, code=code) from error

    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        raise DiskFullError(
            f"The disk is full: the base model {name!r} does not fit into the download cache {constants.HF_HUB_CACHE}.",
            hint="Free some space there or point HF_HOME to a larger disk.",
        ) from error
    if met(HFValidationError):
        refuse(
            "model-not-found",
            f"There is no base model {name!r} on this host, and that is no hub id either.",
            "Put the model's folder under the models root, or write the hub id as owner/name.",
        )
    if met(GatedRepoError):
        refuse(
            "model-gated",
            f"The base model {name!r} is gated, and this host's token may not read it.",
            f"Ask for access at {address} and set HF_TOKEN on the host.",
        )
    if met(RevisionNotFoundError):
        refuse(
            "model-not-found",
            f"The hub repository {name!r} has no revision {revision!r}.",
            f"Correct revision, or drop it to use the default branch of {address}.",
        )
    if met(RepositoryNotFoundError):
        refuse(
            "model-not-found",
            f"The hub does not know the base model {place}, or this host's token may not see it.",
            f"Check the spelling at {address}; a private model needs HF_TOKEN on the host.",
        )
    answered = next((link for link in chain if isinstance(link, HfHubHTTPError) and link.response is not None), None)
    if answered is not None and answered.response.status_code in {401, 403}:
        refuse(
            "model-gated",
            f"The hub refuses this host's token for the base model {place} (HTTP {answered.response.status_code}).",
            "Set HF_TOKEN on the host to a token that is valid and may read it, or unset it for a public model.",
        )
    if constants.HF_HUB_OFFLINE or met(OfflineModeIsEnabled):
        refuse(
            "model-offline",
            f"The base model {place} is not on this host, which is in offline mode (HF_HUB_OFFLINE).",
            f"Copy the model there, or unset HF_HUB_OFFLINE so that the hub id {name!r} can be downloaded.",
        )
    if answered is not None:
        refuse(
            "model-offline",
            f"The hub at {constants.ENDPOINT} answers HTTP {answered.response.status_code} when it is asked for the "
            f"base model {place}, which is not on this host.",
            "Start the job again later, or copy the model to the host.",
        )
    if met(LocalEntryNotFoundError, ConnectionError, TimeoutError):
        refuse(
            "model-offline",
            f"The base model {place} is not on this host, and the hub cannot be reached at {constants.ENDPOINT}.",
            f"Copy the model there, or check the host's network so that the hub id {name!r} can be downloaded.",
        )
