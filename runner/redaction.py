"""Takes secrets out of text that leaves a host: log tails, error messages. Pure."""

from __future__ import annotations

import re

_SECRETS = re.compile(
    r"""
      \bhf_[A-Za-z0-9]{6,}                      # Hugging Face
    | \bxox[a-z]-[A-Za-z0-9-]{6,}               # Slack bot, user and refresh tokens
    | \bxapp-[A-Za-z0-9-]{6,}                   # Slack app-level tokens
    | \bsk-[A-Za-z0-9_-]{12,}                   # OpenAI and look-alikes
    | \bgh[opsru]_[A-Za-z0-9]{20,}              # GitHub
    | \bgithub_pat_[A-Za-z0-9_]{20,}            # GitHub
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b             # AWS access keys
    | (?<=://)[^\s/@]*:[^\s/@]+(?=@)            # user:password in an address
    | (?<=[Bb]earer\ )[A-Za-z0-9._~+/=-]{8,}    # an Authorization header
    """,
    re.VERBOSE,
)


def redact(text: str) -> str:
    """Replace everything that looks like a token or a password by `[redacted]`."""
    return _SECRETS.sub("[redacted]", text)
