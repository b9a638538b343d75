from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.events import RunFailed
from runner.redaction import redact, redact_all
from tests.secrets import SECRETS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("401 for hf_LocalLocalLocal1 at x", "401 for [redacted] at x"),
        ("xoxb-local-local-local", "[redacted]"),
        ("xapp-1-LOCAL-local", "[redacted]"),
        ("redis://:local-password@127.0.0.1:6379/0", "redis://[redacted]@127.0.0.1:6379/0"),
        ("rediss://bot:p@ss@host:6380", "rediss://[redacted]@host:6380"),
        ("https://ann:local-password@hub/x", "https://[redacted]@hub/x"),
        ("Authorization: Bearer local-local-local", "Authorization: Bearer [redacted]"),
        ("WANDB_API_KEY=0123456789abcdef0123", "WANDB_API_KEY=[redacted]"),
        ('{"client_secret": "0123456789abcdef0123"}', '{"client_secret": "[redacted]"}'),
        ("hf_hub_download failed at step 3, loss 0.5", "hf_hub_download failed at step 3, loss 0.5"),
        ("install hf_transfer", "install hf_transfer"),
        ("https://huggingface.co/a/b@main", "https://huggingface.co/a/b@main"),
        ("eos_token = '<|end_of_text|>' pad_token: reserved", "eos_token = '<|end_of_text|>' pad_token: reserved"),
        ("a scikit-learn or sk-learn-like-interface", "a scikit-learn or sk-learn-like-interface"),
        ("tokens_per_s=123456.7890123456", "tokens_per_s=123456.7890123456"),
    ],
)
def test_secrets_are_taken_out_and_nothing_else(text: str, expected: str) -> None:
    assert redact(text) == expected


_AROUND = st.text(st.characters(codec="utf-8", exclude_characters=string.ascii_letters + string.digits + "_-+/=.~"))


@given(before=_AROUND, name=st.sampled_from(sorted(SECRETS)), after=_AROUND)
def test_no_text_around_it_keeps_a_secret_from_being_found(before: str, name: str, after: str) -> None:
    planted, secret = SECRETS[name]
    assert secret not in redact(f"{before}{planted}{after}")


@given(texts=st.lists(st.text() | st.sampled_from([planted for planted, _ in SECRETS.values()]), max_size=6))
def test_json_stays_json_and_redacting_twice_is_redacting_once(texts: list[str]) -> None:
    line = redact(json.dumps(texts))
    assert len(json.loads(line)) == len(texts)
    assert redact(line) == line


@pytest.mark.parametrize("name", SECRETS)
def test_every_text_of_an_event_is_looked_at(name: str) -> None:
    planted, secret = SECRETS[name]
    event = RunFailed(code="internal", message=f"it said {planted}", hint=planted)

    clean = redact_all(event)

    assert secret not in clean.model_dump_json()
    assert (clean.code, clean.at) == (event.code, event.at)
    assert redact_all(clean) is clean


def test_a_long_text_without_an_end_is_looked_at_in_no_time() -> None:
    for part in ("-----BEGIN PRIVATE KEY-----\n", "token=", "://", "eyJ", "a:", "A" * 64 + "\n", "sk-", "hf_a"):
        text = part * (200_000 // len(part))
        redact(text)
