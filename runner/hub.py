"""Uploads an adapter or a merged model to a model hub, into a private repository unless asked otherwise.

Address and token are the host's own: `HF_ENDPOINT` and `HF_TOKEN`, or what `hf auth login` has left.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from runner.errors import UnavailableError, UsageError
from runner.redaction import redact

_CONFLICT = 409
_REFUSED = (401, 403)


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where it lies now."""

    url: str
    commit_url: str
    private: bool


def push_folder(folder: Path, repo_id: str, *, public: bool, message: str) -> Pushed:
    """Create the repository where there is none, and upload the folder as one commit.

    Args:
        folder: All files of it are uploaded.
        repo_id: `owner/name`.
        public: Whether the repository may be one that everybody can read.
        message: Of the commit.

    Raises:
        UsageError: That cannot be a repository's name, or it is there already and public though `public` is not given.
        UnavailableError: This host has no token, or the hub refuses or cannot be reached.
    """
    token = get_token()
    if token is None:
        raise UnavailableError(
            "This host has no token for the model hub.", hint="Set HF_TOKEN to one that may write.", code="hub-token"
        )
    api = HfApi(token=token)
    try:
        private = _make_repository(api, repo_id, public=public)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except UsageError:
        raise
    except HFValidationError as error:
        raise UsageError(f"{repo_id!r} is no name of a repository: {error}", hint="Write owner/name.") from error
    except Exception as error:
        raise _unavailable(error, api.endpoint, repo_id, token) from error
    return Pushed(url=f"{api.endpoint}/{repo_id}", commit_url=str(commit.commit_url), private=private)


def _make_repository(api: HfApi, repo_id: str, *, public: bool) -> bool:
    """Create it, or look at what is there; says whether it is private.

    Raises:
        UsageError: It is there and public, which was not asked for (`repository-public`).
    """
    try:
        api.create_repo(repo_id, private=not public)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code != _CONFLICT:
            raise
        private = bool(api.model_info(repo_id).private)
        if not private and not public:
            raise UsageError(
                f"{repo_id} is there already and everybody can read it.",
                hint="Name another repository, or give --public if that is meant.",
                code="repository-public",
            ) from error
        return private
    return not public


def _unavailable(error: Exception, endpoint: str, repo_id: str, token: str) -> UnavailableError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = redact(lines[0]).replace(token, "[redacted]")
    if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code in _REFUSED:
        return UnavailableError(
            f"The hub at {endpoint} does not let this host's token write to {repo_id}: {reason}",
            hint="Set HF_TOKEN to a token with write access to that owner's repositories.",
            code="hub-refused",
        )
    return UnavailableError(
        f"The upload to {endpoint} failed: {reason}",
        hint="Check the address (HF_ENDPOINT) and the host's network, then push again: what arrived is not sent twice.",
        code="hub-unreachable",
    )
