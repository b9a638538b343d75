"""Takes secrets out of text and events that leave a host: errors, log tails, logs, threads. Pure.

By their shapes, because nobody can know all values. What is replaced holds no quote that ends a JSON text, so that
JSON stays JSON.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel

_SECRETS = re.compile(
    r"""
      \bhf_(?:[A-Za-z0-9]{16,}|(?=[a-z]{0,80}[A-Z0-9])[A-Za-z0-9]{8,})            # Hugging Face
    | \bxox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{6,}        # Slack bot, user, configuration and refresh tokens
    | \bxapp-[A-Za-z0-9-]{6,}                           # Slack app-level tokens
    | (?<=hooks\.slack\.com/services/)[A-Za-z0-9/]{8,}  # Slack incoming webhooks
    | \bsk-(?=[A-Za-z_-]{0,80}[0-9])[A-Za-z0-9_-]{12,}       # OpenAI and look-alikes
    | \bgh[opsru]_[A-Za-z0-9]{20,}                      # GitHub
    | \bgithub_pat_[A-Za-z0-9_]{20,}                    # GitHub
    | \bglpat-[A-Za-z0-9_-]{20,}                        # GitLab
    | \bAIza[A-Za-z0-9_-]{35}                           # Google
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b                     # AWS access keys
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?   # JSON web tokens
    | (?<=://)[^\s/"\\]*:[^\s/"\\]+(?=@)                # user:password in an address
    | (?<=[Bb]earer\ )[A-Za-z0-9._~+/=-]{8,}            # an Authorization header
    | (?<=[Bb]asic\ )(?=[A-Za-z+/]{0,80}[0-9=])[A-Za-z0-9+/=]{12,}
    | -----BEGIN\ [A-Z0-9\ ]*PRIVATE\ KEY-----          # a private key, as text or inside a JSON text, whole or cut
      (?:[A-Za-z0-9+/=\s:,.-]|\\[nr])*?
      (?:-----END\ [A-Z0-9\ ]*PRIVATE\ KEY-----|(?![A-Za-z0-9+/=\s:,.-]|\\[nr])|\Z)
    # A line of a private key whose beginning is elsewhere; digests, which are hexadecimal, are not meant.
    | (?m:^(?=.{0,60}[g-z])(?=.{0,60}[G-Z])(?=.{0,60}[0-9])[A-Za-z0-9+/]{48,}={0,2}$)
    # Such as an AWS secret key, which has no shape of its own.
    | (?P<name>(?i:password|passwd|secret|token|api_?key|access_?key|secret_?key)(?:\\?["'])?\s*[=:]\s*(?:\\?["'])?)
      (?=[A-Za-z_./+~-]{0,80}[0-9])[A-Za-z0-9_./+=~-]{16,}   # whatever is called so
    """,
    re.VERBOSE | re.ASCII,
)

Model = TypeVar("Model", bound=BaseModel)


def redact(text: str) -> str:
    """Replace everything that looks like a token, a key or a password by `[redacted]`."""
    return _SECRETS.sub(lambda found: (found["name"] or "") + "[redacted]", text)


def redact_all(record: Model) -> Model:
    """The same record, with `redact` applied to every text in it; itself where there is nothing to hide."""
    # Nearly always there is nothing, and events are many: one look at the whole costs little.
    if _SECRETS.search(record.model_dump_json()) is None:
        return record
    return type(record).model_validate(_redacted(record.model_dump()))


def _redacted(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case dict():
            return {key: _redacted(inner) for key, inner in value.items()}
        case list() | tuple():
            return type(value)(_redacted(inner) for inner in value)
        case _:
            return value
