"""What `REDIS_URL` may be, and that nothing said of it holds a password."""

from __future__ import annotations

import pytest
import redis

from runner.errors import UnavailableError
from runner.redis_address import parse_redis_url, without_password


def test_an_address_of_one_server_has_credentials_and_a_database() -> None:
    address = parse_redis_url("redis://bot:p%40ss%2Fword@redis.example.com:6380/2")

    assert address.options == {
        "username": "bot",
        "password": "p@ss/word",
        "host": "redis.example.com",
        "port": 6380,
        "db": 2,
    }
    assert address.sentinels == ()


def test_tls_checks_the_certificate_and_whose_it_is() -> None:
    options = parse_redis_url("rediss://host/0?ssl_ca_certs=/etc/team.pem").options

    assert options["connection_class"] is redis.SSLConnection
    assert (options["ssl_ca_certs"], options["ssl_check_hostname"]) == ("/etc/team.pem", True)


def test_sentinels_are_many_with_a_master_a_database_and_credentials_of_both_kinds() -> None:
    address = parse_redis_url(
        "rediss+sentinel://bot:secret@one,two:26380,[::1]:26381/jobs/3"
        "?ssl_ca_certs=/etc/team.pem&sentinel_username=s&sentinel_password=other"
    )

    assert address.sentinels == (("one", 26379), ("two", 26380), ("::1", 26381))
    assert (address.master, address.options["db"]) == ("jobs", 3)
    assert (address.options["username"], address.options["password"]) == ("bot", "secret")
    tls = {"ssl": True, "ssl_ca_certs": "/etc/team.pem", "ssl_check_hostname": True}
    assert address.options.items() >= tls.items()
    assert address.sentinel_options == tls | {"username": "s", "password": "other"}
    assert "secret" not in repr(address)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("secret", "does not say how to connect"),
        ("http://:secret@host", "begin with one of redis://, rediss://, unix://, redis+sentinel://"),
        ("redis://:secret@[::1", "nobody can tell its host"),
        ("redis://:secret/@host/0", "percent-encoded"),
        ("redis://:se?cret@host/0", "percent-encoded"),
        ("redis://:se#cret@host/0", "percent-encoded"),
        ("redis://:secret@one,two/0", "redis+sentinel://:password@host1:26379,host2:26379/mymaster"),
        ("redis://:secret@host:secret/0", "a port from 1 to 65535"),
        ("redis://host:70000/0", "a port from 1 to 65535"),
        ("redis://:secret@host/secret", "the number of a database"),
        ("redis://:secret@host/0?nonsense=secret", "none of redis-py's: nonsense"),
        ("redis://:secret@host/0?health_check_interval=secret", "health_check_interval"),
        ("rediss://:secret@host/0?ssl_cert_reqs=nonsense", "Invalid SSL Certificate Requirements Flag"),
        ("redis+sentinel://:secret@one,two", "the master's name"),
        ("redis+sentinel://:secret@one/master/secret", "the master's name"),
        ("redis+sentinel://one/master?sentinel_secret=1", "there is no option sentinel_secret"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_in_words_that_hold_no_password(url: str, said: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        parse_redis_url(url)

    assert caught.value.message.startswith("REDIS_URL is no Redis address: ")
    assert said in caught.value.message
    assert caught.value.hint is not None
    assert "secret" not in str(caught.value).replace("sentinel_secret", "")


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "redis-cluster", "cluster"])
def test_a_cluster_is_refused_by_name(scheme: str) -> None:
    with pytest.raises(UnavailableError, match="REDIS_URL names a Redis Cluster") as caught:
        parse_redis_url(f"{scheme}://:secret@one:6379,two:6379")

    assert "Sentinel" in str(caught.value.hint)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@[::1", "redis://…"),
        ("redis://:secret@host:1/0", "redis://:***@host:1/0"),
        ("redis://:se/cr@et@host:1/0", "redis://:***@host:1/0"),
        ("rediss://user:se%40cret@host/0", "rediss://user:***@host/0"),
        ("redis://host:1/0", "redis://host:1/0"),
        ("redis://host:1/0?password=secret&db=1", "redis://host:1/0?password=***&db=1"),
        (
            "redis+sentinel://u:secret@one:1,two:2/jobs?sentinel_password=secret",
            "redis+sentinel://u:***@one:1,two:2/jobs?sentinel_password=***",
        ),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("secret", "…"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
