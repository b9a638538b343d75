"""`REDIS_URL` in every form that is understood, and as it may be shown. Pure; no I/O.

    redis://[user:password@]host[:port][/db]                            one server
    rediss://…                                                          the same over TLS
    unix://[user:password@]/path/to/socket[?db=0]                       one server on this machine
    redis+sentinel://[user:password@]host[:port],host[:port]…/master    whichever server the Sentinels call the master
    rediss+sentinel://…                                                 the same over TLS, Sentinels included

Options follow a `?`: those of redis-py (`ssl_ca_certs=/etc/ssl/team-ca.pem` is the one that matters), and
`sentinel_username` and `sentinel_password` where the Sentinels want credentials of their own. No message of this module
holds a password, nor anything that could be a part of one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.connection import parse_url

from runner.errors import UnavailableError

SENTINEL_PORT = 26379
_HIGHEST_PORT = 65535
EXAMPLE = "redis://:password@host:6379/0"
SENTINEL_EXAMPLE = "redis+sentinel://:password@host1:26379,host2:26379/mymaster"

_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
_SECRET_OPTIONS = ("password", "sentinel_password", "ssl_password")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where the jobs are kept. Its repr shows no password."""

    options: dict[str, Any] = field(repr=False)
    """What every connection to the server that holds the data is built with."""
    sentinels: tuple[tuple[str, int], ...] = ()
    """Host and port of each Sentinel; empty where the server's own address is given."""
    master: str = ""
    """What the Sentinels call the server."""
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)
    """What every connection to a Sentinel is built with."""


def parse_redis_url(url: str) -> RedisAddress:
    """Read an address.

    Raises:
        UnavailableError: It cannot be meant.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise _bad("it does not say how to connect")
    if "cluster" in scheme.lower():
        raise UnavailableError(
            "REDIS_URL names a Redis Cluster, and the jobs cannot be kept in one: a step that moves a job touches keys "
            "of several slots at once.",
            hint=f"Use one server, or one with replicas behind Sentinels: {SENTINEL_EXAMPLE}.",
        )
    if scheme not in _SCHEMES:
        raise _bad(f"it has to begin with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _bad("nobody can tell its host; an IPv6 address stands in brackets") from None
    if parts.fragment or "@" in parts.path + parts.query:
        raise _bad("user and password must be percent-encoded: write / as %2F, ? as %3F, # as %23, @ as %40")
    return _sentinels(parts) if scheme.endswith("+sentinel") else _server(parts)


def without_password(url: str) -> str:
    """The same URL, fit for a log or a message."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return "…"
    # Up to the last @, because somebody may have forgotten to encode one, or a slash before it.
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    if colon or "/" in credentials:
        credentials = f"{'' if '/' in credentials else user}:***"
    place, question, query = place.partition("?")
    if place.count("[") != place.count("]"):  # Nobody can tell where a host ends.
        return f"{scheme}://…"
    shown = [(name, "***" if name in _SECRET_OPTIONS else value) for name, value in parse_qsl(query)]
    return f"{scheme}{separator}{credentials}{at}{place}{question}{urlencode(shown, safe='*/:')}"


def _server(parts: SplitResult) -> RedisAddress:
    if parts.scheme != "unix":
        if "," in parts.netloc:
            raise _bad(f"it names several hosts; for Sentinels write {SENTINEL_EXAMPLE}")
        _hosts(parts, default_port=6379)
        if not re.fullmatch(r"/?\d*", parts.path):
            raise _bad("what follows the host is the number of a database, such as /0")
    return RedisAddress(_options(parts))


def _sentinels(parts: SplitResult) -> RedisAddress:
    master, _, database = parts.path.removeprefix("/").partition("/")
    if not master or not re.fullmatch(r"\d*", database):
        raise _bad(f"after the Sentinels comes the master's name, then perhaps a database: {SENTINEL_EXAMPLE}")
    own = {name: value for name, value in parse_qsl(parts.query) if name.startswith("sentinel_")}
    unknown = sorted(own.keys() - {"sentinel_username", "sentinel_password"})
    if unknown:
        raise _bad(f"there is no option {unknown[0]}")
    hosts = _hosts(parts, default_port=SENTINEL_PORT)
    credentials, at, _ = parts.netloc.rpartition("@")
    others = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] not in own])
    options = _options(
        parts._replace(
            scheme=parts.scheme.removesuffix("+sentinel"),
            netloc=f"{credentials}{at}any-host",
            path=f"/{database}",
            query=others,
        )
    )
    del options["host"]
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    secure = {name: value for name, value in options.items() if name.startswith("ssl")}
    credentials_of_sentinels = {name.removeprefix("sentinel_"): value for name, value in own.items()}
    return RedisAddress(options, hosts, unquote(master), secure | credentials_of_sentinels)


def _hosts(parts: SplitResult, *, default_port: int) -> tuple[tuple[str, int], ...]:
    hosts = []
    for place in parts.netloc.rpartition("@")[2].split(","):
        found = _HOST.fullmatch(place)
        port = int(found["port"] or default_port) if found else 0
        if found is None or not 0 < port <= _HIGHEST_PORT:
            raise _bad("a host is written host or host:port, with a port from 1 to 65535")
        hosts.append((unquote(found["host"].strip("[]")), port))
    return tuple(hosts)


def _options(parts: SplitResult) -> dict[str, Any]:
    # Not `geturl`, which leaves the slashes of unix:///path out.
    url = f"{parts.scheme}://{parts.netloc}{urlunsplit(('', '', *parts[2:]))}"
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError as error:
        # redis-py names the option and not its value; of a host or a port nothing is left to be said here.
        raise _bad(str(error).rstrip(".")) from None
    if parts.scheme == "rediss":
        # Older versions of redis-py check the certificate and not whose it is.
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
    kind = options.get("connection_class", redis.Connection)
    try:
        kind(**{name: value for name, value in options.items() if name != "connection_class"})
    except TypeError:
        names = ", ".join(name for name, _ in parse_qsl(parts.query))
        raise _bad(f"an option is none of redis-py's: {names}") from None
    except (redis.RedisError, ValueError) as error:
        raise _bad(str(error).rstrip(".")) from None
    return options


def _bad(finding: str) -> UnavailableError:
    return UnavailableError(f"REDIS_URL is no Redis address: {finding}.", hint=f"Set it to something like {EXAMPLE}.")
