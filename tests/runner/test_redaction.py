from __future__ import annotations

import pytest

from runner.redaction import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("401 for hf_LocalLocalLocal1 at x", "401 for [redacted] at x"),
        ("xoxb-local-local-local", "[redacted]"),
        ("xapp-1-LOCAL-local", "[redacted]"),
        ("redis://:local-password@127.0.0.1:6379/0", "redis://[redacted]@127.0.0.1:6379/0"),
        ("https://ann:local-password@hub/x", "https://[redacted]@hub/x"),
        ("Authorization: Bearer local-local-local", "Authorization: Bearer [redacted]"),
        ("hf_hub_download failed at step 3, loss 0.5", "hf_hub_download failed at step 3, loss 0.5"),
        ("https://huggingface.co/a/b@main", "https://huggingface.co/a/b@main"),
    ],
)
def test_secrets_are_taken_out_and_nothing_else(text: str, expected: str) -> None:
    assert redact(text) == expected
