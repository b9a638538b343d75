"""Tokens of the usual shapes, none of them real: how each is met, and the part that nobody else may read."""

_BODY = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
_KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7"

SECRETS: dict[str, tuple[str, str]] = {
    "hugging face": (f"hf_{_BODY}"[:37], _BODY[:34]),
    "slack bot": ("xoxb-" + "1234567890-abcdefABCDEF", "1234567890-abcdefABCDEF"),
    "slack app": ("xapp-1-" + "A0LOCAL-1234567890-abcdef", "A0LOCAL-1234567890-abcdef"),
    "openai": (f"sk-proj-{_BODY}", _BODY),
    "aws id": ("AKIA" + "IOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
    "aws key": ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG"),
    "github": (f"ghp_{_BODY}", _BODY),
    "github fine": (f"github_pat_{_BODY}_{_BODY}", _BODY),
    "redis": ("rediss://bot:loc4l-password@redis.example:6380/0", "loc4l-password"),
    "bearer": (f"Authorization: Bearer {_BODY}", _BODY),
    "private key": (f"-----BEGIN RSA PRIVATE KEY-----\n{_KEY}\n{_KEY}\n-----END RSA PRIVATE KEY-----", _KEY),
    "web token": ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJzdWIiOiIxMjM0In0"),
}
