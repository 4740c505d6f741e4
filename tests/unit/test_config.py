"""RedisConfig: every field checked before any I/O, URLs read to the letter, no secret let out."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from pevensie.redis.config import RedisConfig, default_config

SECRET = "Zq7Xw9Kj"
"""Looks like nothing else, so that finding any five characters of it means that it leaked."""

quick = settings(deadline=None, max_examples=200)
read = RedisConfig.from_url


def failure(make: Callable[[], object]) -> Exception:
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    return caught.value


def everything_said(error: BaseException | None) -> str:
    """The traceback, and every exception chained to it, even those that ``from None`` hides."""
    said = "" if error is None else "".join(traceback.format_exception(error))
    while error is not None:
        said += repr(error)
        error = error.__cause__ or error.__context__
    return said


def leaks(said: str, secret: str = SECRET) -> bool:
    return any(secret[start : start + 5] in said for start in range(len(secret) - 4))


# What a config is


def test_the_defaults_are_those_of_the_contract() -> None:
    config = default_config()
    assert config == RedisConfig()
    assert repr(config) == (
        "RedisConfig(host='localhost', port=6379, timeout=5000, pool_size=10, username=None, "
        "password=None, database=0, unix_socket=None, tls=False, client_name='pevensie', "
        "namespace=None, set_mode='expire', integrity_checks=True)"
    )


def test_replace_makes_a_changed_copy_and_checks_it() -> None:
    config = dataclasses.replace(default_config(), host="cache.pevensie.dev")
    assert config == RedisConfig(host="cache.pevensie.dev")
    assert default_config().host == "localhost"
    with pytest.raises(ValueError, match="port must be between 1 and 65535, got 0"):
        dataclasses.replace(config, port=0)


def test_a_config_is_frozen_and_hashable() -> None:
    config = RedisConfig(password=SECRET)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.host = "elsewhere"  # type: ignore[misc]  # pyright: ignore
    assert {config: 1}[RedisConfig(password=SECRET)] == 1


def test_the_signature_is_still_that_of_the_fields() -> None:
    names = [field.name for field in dataclasses.fields(RedisConfig)]
    assert list(inspect.signature(RedisConfig).parameters) == names


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(1, 0.001), (5000, 5.0), (timedelta(seconds=2), 2.0), (timedelta(microseconds=1500), 0.0015)],
)
def test_timeout_seconds_is_in_seconds_whichever_way_it_was_given(
    timeout: int | timedelta, seconds: float
) -> None:
    assert RedisConfig(timeout=timeout).timeout_seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("config", "address"),
    [
        (RedisConfig(), "localhost:6379"),
        (RedisConfig(host="::1", port=1), "[::1]:1"),
        (RedisConfig(host="fe80::1%eth0"), "[fe80::1%eth0]:6379"),
        (RedisConfig(unix_socket=Path("/run/valkey.sock"), host="ignored"), "/run/valkey.sock"),
        (RedisConfig(username="lucy", password=SECRET, host="h"), "h:6379"),
    ],
)
def test_address_is_the_server_for_people(config: RedisConfig, address: str) -> None:
    assert config.address == address


def test_a_unix_socket_is_kept_as_a_str() -> None:
    assert RedisConfig(unix_socket=Path("/run/valkey.sock")).unix_socket == "/run/valkey.sock"


def test_importing_the_module_loads_nothing_heavy() -> None:
    heavy = {"ssl", "socket", "asyncio", "urllib.parse", "difflib", "hiredis"}
    code = f"import sys, pevensie.redis.config; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Fields: what is accepted, what is refused


async def an_async_function() -> str:
    return ""


class SecretText:
    """As other libraries wrap passwords: not a str, and its repr may say too much."""

    def __repr__(self) -> str:
        return SECRET


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "10.0.0.1"},
        {"host": "::1"},
        {"host": "my_service.namespace.svc."},
        {"host": "bücher.example"},
        {"port": 1},
        {"port": 65535},
        {"timeout": 1},
        {"timeout": 86_400_000},
        {"timeout": timedelta(days=1)},
        {"pool_size": 1},
        {"username": "lucy"},
        {"username": "lucy", "password": ""},
        {"password": "with space, ünïcode and \0"},
        {"password": lambda: "fresh"},
        {"database": 15},
        {"unix_socket": "relative.sock"},
        {"tls": True},
        {"tls": ssl.create_default_context()},
        {"client_name": ""},
        {"client_name": "web-1:worker/2!~"},
        {"namespace": "shop/staging"},
        {"set_mode": "single"},
        {"integrity_checks": False},
    ],
)
def test_good_values_are_accepted_and_kept(fields: dict[str, Any]) -> None:
    config = RedisConfig(**fields)
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": b"h"}, "host must be a str, not bytes"),
        ({"host": None}, "host must be a str, not NoneType"),
        ({"port": "6379"}, "port must be an int, not str"),
        ({"port": True}, "port must be an int, not bool"),
        ({"timeout": 0.5}, "timeout must be an int of milliseconds or a datetime.timedelta.*float"),
        ({"timeout": True}, "timeout must be an int of milliseconds.*bool"),
        ({"timeout": "5s"}, "timeout must be .*str"),
        ({"timeout": None}, "timeout must be .*NoneType"),
        ({"pool_size": 1.0}, "pool_size must be an int, not float"),
        ({"username": 1}, "username must be a str or None, not int"),
        (
            {"password": b"x"},
            "password must be a str, a callable that returns one, or None, .*byte",
        ),
        ({"password": SecretText()}, "password must be a str, .* not SecretText"),
        ({"password": an_async_function}, "password must be .*not an async function"),
        ({"database": "0"}, "database must be an int, not str"),
        ({"database": False}, "database must be an int, not bool"),
        ({"unix_socket": b"/s"}, "unix_socket must be a str, an os.PathLike of str, or None"),
        ({"tls": 1}, "tls must be True, False or an ssl.SSLContext, not int"),
        ({"tls": None}, "tls must be .*NoneType"),
        ({"client_name": None}, "client_name must be a str .'' for no name., not NoneType"),
        ({"namespace": 1}, "namespace must be a str or None, not int"),
        ({"set_mode": None}, "set_mode must be 'expire' or 'single', not NoneType"),
        ({"integrity_checks": 1}, "integrity_checks must be True or False, not int"),
    ],
)
def test_a_wrong_type_is_a_type_error_that_names_field_and_fix(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        RedisConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": ""}, "host must not be empty"),
        ({"host": "redis://lucy:pw@h"}, "host .*for a URL there is RedisConfig.from_url"),
        ({"host": "/run/valkey.sock"}, "host .*for a path unix_socket"),
        ({"host": "my host"}, "host must not hold spaces"),
        ({"host": "h\n"}, "host must not hold spaces, line breaks"),
        ({"host": "h\ud800"}, "host must not hold .*unprintable"),
        ({"host": "[::1]"}, "host must be without brackets"),
        ({"host": "h:6379"}, "host must be without a port: give that as port"),
        ({"host": "a..b"}, "host must be a name that DNS can carry"),
        ({"host": "x" * 64}, "host must be a name that DNS can carry"),
        ({"port": 0}, "port must be between 1 and 65535, got 0"),
        ({"port": 70000}, "port must be between 1 and 65535, got 70000"),
        ({"port": 10**5000}, "port must be between 1 and 65535, got a number of over 64 bits"),
        ({"timeout": 0}, "timeout must be at least 1 ms, got 0 ms"),
        ({"timeout": -1}, "timeout must be at least 1 ms, got -1 ms"),
        ({"timeout": timedelta(microseconds=999)}, "timeout must be at least 1 ms, got 0.999 ms"),
        ({"timeout": 86_400_001}, "timeout must be at most one day"),
        ({"timeout": timedelta.max}, "timeout must be at most one day"),
        ({"timeout": 10**5000}, "timeout must be at most one day"),
        ({"pool_size": 0}, "pool_size must be at least 1, got 0"),
        ({"username": ""}, "username must not be empty; None"),
        ({"username": "\ud800"}, "username must be text that UTF-8 can encode"),
        ({"password": ""}, "password must not be empty; None"),
        ({"password": "\ud800"}, "password must be text that UTF-8 can encode"),
        ({"database": -1}, "database must be at least 0, got -1"),
        ({"unix_socket": ""}, "unix_socket must be a path, not empty"),
        ({"unix_socket": "/a\0b"}, "unix_socket must be a path, .*NUL"),
        ({"unix_socket": "/s", "tls": True}, "tls must be False with unix_socket"),
        ({"client_name": "my app"}, "client_name must be printable ASCII without spaces"),
        ({"client_name": "a\r\n"}, "client_name must be printable ASCII"),
        ({"client_name": "é"}, "client_name must be printable ASCII"),
        ({"namespace": ""}, "namespace must not be empty; None"),
        ({"namespace": "a:b"}, "namespace must not hold a ':'"),
        ({"namespace": "\udfff"}, "namespace must be text that UTF-8 can encode"),
        ({"set_mode": "both"}, "set_mode must be 'expire' or 'single'"),
    ],
)
def test_a_wrong_value_is_a_value_error_that_names_field_and_fix(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        RedisConfig(**fields)


@quick
@given(
    st.sampled_from([field.name for field in dataclasses.fields(RedisConfig)]),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.timedeltas(),
    ),
)
def test_any_value_is_accepted_or_refused_with_the_name_of_its_field(name: str, value: Any) -> None:
    try:
        config = RedisConfig(**{name: value})
    except (TypeError, ValueError) as error:
        assert str(error).startswith(f"{name} must ")
    else:
        assert getattr(config, name) == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hots", "RedisConfig has no field hots; did you mean host?"),
        ("Port", "RedisConfig has no field Port; did you mean port?"),
        ("db", "RedisConfig has no field db; did you mean database?"),
        ("ssl", "RedisConfig has no field ssl; did you mean tls?"),
        ("max_connections", "RedisConfig has no field max_connections; did you mean pool_size?"),
        ("socket_timeout", "RedisConfig has no field socket_timeout; did you mean timeout?"),
    ],
)
def test_a_wrong_field_is_named_with_the_nearest_right_one(name: str, message: str) -> None:
    wrong: dict[str, Any] = {name: SECRET}
    for make in (
        lambda: RedisConfig(**wrong),
        lambda: dataclasses.replace(default_config(), **wrong),
    ):
        error = failure(make)
        assert isinstance(error, TypeError)
        assert str(error) == message


def test_a_field_like_no_other_gets_the_list_of_fields() -> None:
    wrong: dict[str, Any] = {"zzz": 1}
    assert "there are host, port, timeout, " in str(failure(lambda: RedisConfig(**wrong)))


def test_a_positional_argument_is_answered_with_the_right_way() -> None:
    make: Any = RedisConfig
    error = failure(lambda: make("redis://" + SECRET))
    assert isinstance(error, TypeError)
    assert "RedisConfig(host='localhost')" in str(error)
    assert "RedisConfig.from_url" in str(error)
    assert not leaks(everything_said(error))


# Secrets


@pytest.mark.parametrize("password", [SECRET, SecretText, lambda: SECRET])
def test_repr_and_str_never_show_a_password(password: Any) -> None:
    config = RedisConfig(password=password, username="lucy")
    for shown in (repr(config), str(config), f"{config}"):
        assert "username='lucy', password='***'" in shown
        assert not leaks(shown)


@pytest.mark.parametrize(
    "wrong",
    [
        {"password": SECRET, "port": 0},
        {"password": SECRET, "hots": 1},
        {"password": SECRET + "\ud800"},
        {"password": SECRET.encode()},
        {"host": f"redis://:{SECRET}@h"},
        {"host": f"{SECRET}@h"},
        {"host": f"{SECRET} h"},
        {"client_name": f"{SECRET} {SECRET}"},
        {"namespace": f"{SECRET}:"},
        {"set_mode": SECRET},
    ],
)
def test_no_message_shows_a_text_that_was_given(wrong: dict[str, Any]) -> None:
    assert not leaks(everything_said(failure(lambda: RedisConfig(**wrong))))


@pytest.mark.parametrize("password", [SECRET, default_config])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_config_with_a_password_is_not_pickled(password: Any, protocol: int) -> None:
    config = RedisConfig(password=password)
    with pytest.raises(TypeError, match=r"from_env.*password=None") as caught:
        pickle.dumps(config, protocol)
    assert not leaks(everything_said(caught.value))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_config_without_a_password_survives_pickling(protocol: int) -> None:
    config = RedisConfig(host="h", timeout=timedelta(seconds=1), username="lucy", tls=True)
    assert pickle.loads(pickle.dumps(config, protocol)) == config


def test_copies_keep_the_password_and_any_tls_context() -> None:
    config = RedisConfig(password=SECRET, tls=ssl.create_default_context())
    for same in (copy.copy(config), copy.deepcopy(config), dataclasses.replace(config)):
        assert same == config


# URLs: what they mean


@pytest.mark.parametrize(
    ("url", "config"),
    [
        ("redis://", RedisConfig()),
        ("redis:///", RedisConfig()),
        ("redis://localhost", RedisConfig()),
        ("valkey://h", RedisConfig(host="h")),
        ("REDIS://h", RedisConfig(host="h")),
        (" redis://h\n", RedisConfig(host="h")),
        ("redis://h:1234", RedisConfig(host="h", port=1234)),
        ("redis://h:", RedisConfig(host="h")),
        ("redis://:1234", RedisConfig(port=1234)),
        ("redis://[::1]", RedisConfig(host="::1")),
        ("redis://[::1]:1234/2", RedisConfig(host="::1", port=1234, database=2)),
        ("redis://[fe80::1%25eth0]", RedisConfig(host="fe80::1%eth0")),
        ("redis://bücher.example", RedisConfig(host="bücher.example")),
        ("redis://lucy:pw@h", RedisConfig(host="h", username="lucy", password="pw")),
        ("redis://lucy@h", RedisConfig(host="h", username="lucy")),
        ("redis://lucy:@h", RedisConfig(host="h", username="lucy")),
        ("redis://:pw@h", RedisConfig(host="h", password="pw")),
        ("redis://:pw@", RedisConfig(password="pw")),
        ("redis://:@h", RedisConfig(host="h")),
        ("redis://@h", RedisConfig(host="h")),
        ("redis://a%3Ab:%40%2F%23+@h", RedisConfig(host="h", username="a:b", password="@/#+")),
        ("redis://:p@:[w@h", RedisConfig(host="h", password="p@:[w")),
        ("redis://:100%@h", RedisConfig(host="h", password="100%")),
        ("redis://h/0", RedisConfig(host="h")),
        ("redis://h/2", RedisConfig(host="h", database=2)),
        ("redis://h/2/", RedisConfig(host="h", database=2)),
        ("redis:///2", RedisConfig(database=2)),
        ("redis://h?db=2", RedisConfig(host="h", database=2)),
        ("redis://h/?database=2", RedisConfig(host="h", database=2)),
        ("redis://h/2?db=2", RedisConfig(host="h", database=2)),
        ("redis://h?", RedisConfig(host="h")),
        ("redis://h?&db=2&", RedisConfig(host="h", database=2)),
        ("rediss://h", RedisConfig(host="h", tls=True)),
        ("valkeys://h:6380", RedisConfig(host="h", port=6380, tls=True)),
        ("unix:///run/valkey.sock", RedisConfig(unix_socket="/run/valkey.sock")),
        ("unix:///my%20socket?db=2", RedisConfig(unix_socket="/my socket", database=2)),
        ("unix://lucy:pw@/s", RedisConfig(unix_socket="/s", username="lucy", password="pw")),
        ("unix:///s?password=p%26w", RedisConfig(unix_socket="/s", password="p&w")),
    ],
)  # fmt: skip
def test_a_url_means(url: str, config: RedisConfig) -> None:
    assert read(url) == config


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("timeout=250ms", {"timeout": 250}),
        ("timeout=2s", {"timeout": 2000}),
        ("timeout=1.5s", {"timeout": 1500}),
        ("timeout=.5s", {"timeout": 500}),
        ("timeout=1m", {"timeout": 60_000}),
        ("timeout=1.5ms", {"timeout": timedelta(microseconds=1500)}),
        ("pool_size=3", {"pool_size": 3}),
        ("username=lucy", {"username": "lucy"}),
        ("username=lucy&password=p%2Bw", {"username": "lucy", "password": "p+w"}),
        ("client_name=web", {"client_name": "web"}),
        ("client_name=", {"client_name": ""}),
        ("namespace=shop%2Fstaging", {"namespace": "shop/staging"}),
        ("namespace=a+b", {"namespace": "a b"}),
        ("set_mode=single", {"set_mode": "single"}),
        *((f"integrity_checks={no}", {"integrity_checks": False}) for no in ("false", "0", "OFF")),
        *((f"integrity_checks={yes}", {}) for yes in ("true", "1", "Yes")),
        ("max_connections=3", {"pool_size": 3}),
        ("socket_timeout=0.25", {"timeout": 250}),
        ("socket_timeout=5.", {"timeout": 5000}),
        ("socket_connect_timeout=2", {"timeout": 2000}),
        ("socket_timeout=1&socket_connect_timeout=2", {"timeout": 2000}),
        ("socket_timeout=2&socket_connect_timeout=1", {"timeout": 2000}),
        ("socket_timeout=2&timeout=2s", {"timeout": 2000}),
        ("decode_responses=True&encoding=UTF-8&encoding_errors=strict&protocol=3", {}),
        ("health_check_interval=30&socket_keepalive=1&retry_on_timeout=yes", {}),
        ("legacy_responses=no&socket_read_size=4096", {}),
    ],
)  # fmt: skip
def test_a_parameter_means(query: str, fields: dict[str, Any]) -> None:
    assert read(f"redis://h?{query}") == RedisConfig(host="h", **fields)


text = st.text(min_size=1, max_size=20)
hosts = st.one_of(
    st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{1,5}){0,2}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)


@quick
@given(
    scheme=st.sampled_from(["redis", "rediss", "valkey", "valkeys"]),
    username=st.none() | text,
    password=st.none() | text,
    host=hosts,
    port=st.integers(1, 65535),
    database=st.integers(0, 9999),
    namespace=text.filter(lambda text: ":" not in text),
    timeout=st.integers(1, 86_400_000),
)
def test_what_is_quoted_into_a_url_comes_back(
    scheme: str,
    username: str | None,
    password: str | None,
    host: str,
    port: int,
    database: int,
    namespace: str,
    timeout: int,
) -> None:
    userinfo = quote(username or "", safe="")
    if password is not None:
        userinfo += ":" + quote(password, safe="")
    bracketed = f"[{host}]" if ":" in host else host
    query = f"namespace={quote(namespace, safe='')}&timeout={timeout}ms"
    assert read(f"{scheme}://{userinfo}@{bracketed}:{port}/{database}?{query}") == RedisConfig(
        host=host,
        port=port,
        username=username,
        password=password,
        database=database,
        tls=scheme.endswith("ss") or scheme == "valkeys",
        namespace=namespace,
        timeout=timeout,
    )


# URLs: what is refused


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "no scheme: it begins with redis://"),
        ("localhost:6379", "no scheme: it begins with redis://"),
        ("redis:/h", "no scheme"),
        ("http://h", "unknown scheme"),
        ("reddis://h", "unknown scheme; did you mean redis?"),
        ("valkeyss://h", "unknown scheme; did you mean valkeys?"),
        ("redis+socket:///s", "unknown scheme; did you mean unix?"),
        ("redis://h/0#x", "'#': write %23"),
        ("redis://:p#w@h", "'#': write %23"),
        ("redis://:p/w@h", "'@' after its host: in a user name or password write %2F"),
        ("redis://:p?w@h", "'@' after its host: .*%3F"),
        ("redis://h?client_name=a@b", "elsewhere %40"),
        ("redis://:p w@h", "write %20 for a space"),
        ("redis://h\n/0", "space, line break"),
        ("redis://:p%ffw@h", "password in the URL is not UTF-8"),
        ("redis://h:0", "port in the URL must be a number between 1 and 65535"),
        ("redis://h:65536", "port in the URL must be a number between 1 and 65535"),
        ("redis://h:abc", "port in the URL must be a number"),
        ("redis://h:+1", "port in the URL must be a number"),
        ("redis://h:-1", "port in the URL must be a number"),
        ("redis://h:٣", "port in the URL must be a number"),
        ("redis://h:" + "9" * 5000, "port in the URL must be a number"),
        ("redis://::1", "an IPv6 address has brackets"),
        ("redis://[::1", "an IPv6 address has brackets"),
        ("redis://[::1]6379", "an IPv6 address has brackets"),
        ("redis://[h]", "an IPv6 address has brackets"),
        ("redis://a:1,b:2", "more than a host and a port"),
        ("redis://a%20b", "host must not hold spaces"),
        ("redis://%2Frun%2Fs.sock", "host must be .*unix_socket"),
        ("redis://h/abc", "path of the URL must be a database number"),
        ("redis://h/-1", "path of the URL must be a database number"),
        ("redis://h/1/2", "path of the URL must be a database number"),
        ("redis://h/2?db=3", "database in two places"),
        ("redis://h?db=2&database=3", "database in two places"),
        ("redis://h?db=2&db=2", "db twice"),
        ("redis://h?db=x", "db in the URL must be a whole number"),
        ("redis://lucy@h?username=edmund", "username in two places"),
        ("redis://:a@h?password=b", "password in two places"),
        ("redis://h?timeout=250", "timeout=250ms, timeout=2s or timeout=1m"),
        ("redis://h?timeout=", "timeout=250ms"),
        ("redis://h?timeout=-1s", "timeout=250ms"),
        ("redis://h?timeout=nans", "timeout=250ms"),
        ("redis://h?timeout=0s", "timeout must be at least 1 ms"),
        ("redis://h?timeout=999999999999m", "timeout must be at most one day"),
        ("redis://h?timeout=1s&socket_timeout=2", "timeout in two places"),
        ("redis://h?socket_timeout=2s", "socket_timeout in the URL must be a number of seconds"),
        ("redis://h?socket_timeout=inf", "socket_timeout in the URL must be a number of seconds"),
        ("redis://h?socket_connect_timeout=0", "timeout must be at least 1 ms"),
        ("redis://h?pool_size=0", "pool_size must be at least 1, got 0"),
        ("redis://h?max_connections=1&pool_size=2", "pool_size in two places"),
        ("redis://h?integrity_checks=maybe", "integrity_checks in the URL must be true or false"),
        ("redis://h?set_mode=both", "set_mode must be 'expire' or 'single'"),
        ("redis://h?namespace=", "namespace must not be empty"),
        ("redis://h?namespace=%ff", "namespace in the URL is not UTF-8"),
        ("redis://h?protocol=4", "protocol in the URL can only be 2 or 3"),
        ("redis://h?encoding=latin-1", "encoding in the URL can only be utf-8"),
        ("redis://h?encoding_errors=ignore", "encoding_errors in the URL can only be strict"),
        ("redis://h?db", "parameter without a value"),
        ("redis://h?timout=1s", "unknown parameter timout; did you mean timeout?"),
        ("redis://h?Pool_Size=1", "unknown parameter Pool_Size; did you mean pool_size?"),
        ("redis://h?zzz=1", "unknown parameter zzz; there are timeout, "),
        ("redis://h?a.b=1", "unknown parameter, not named"),
        ("redis://h?host=x", "host is not a parameter: it belongs in the URL itself"),
        ("redis://h?port=1", "port is not a parameter"),
        ("redis://h?unix_socket=/s", "unix_socket is not a parameter: write unix://"),
        ("redis://h?tls=true", "tls is not a parameter: rediss:// and valkeys:// mean TLS"),
        ("redis://h?ssl=true", "ssl is not a parameter: rediss://"),
        ("redis://h?credential_provider=m.C", "callable as password"),
        ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs needs TLS: write rediss://"),
        ("unix:///s?ssl_ca_certs=x", "ssl_ca_certs needs TLS"),
        ("rediss://h?ssl_ciphers=ALL", "ssl_ciphers .*give RedisConfig an ssl.SSLContext as tls"),
        ("rediss://h?ssl_cert_req=none", "unknown parameter ssl_cert_req; .*ssl_cert_reqs?"),
        ("unix://", "unix:///path, with three slashes"),
        ("unix://run/s.sock", "unix:///path, with three slashes"),
        ("unix://h:1/s", "unix:///path, with three slashes"),
    ],
    ids=lambda value: value[:50],
)
def test_a_bad_url_is_a_value_error_that_says_the_fix(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(url)


def test_a_url_that_is_no_str_is_a_type_error() -> None:
    wrong: Any = SECRET.encode()
    error = failure(lambda: read(wrong))
    assert isinstance(error, TypeError)
    assert str(error) == "url must be a str, not bytes"


@quick
@given(st.text(), st.sampled_from(["", "redis://", "rediss://h?", "unix:///", "valkey://h/"]))
def test_any_text_is_read_or_refused_with_a_value_error(rest: str, start: str) -> None:
    try:
        read(start + rest)
    except ValueError as error:
        assert everything_said(error).count("Traceback") == 1


# URLs: secrets


@quick
@given(st.lists(st.sampled_from([SECRET, *"/?#@:[]%&=+ \\\n"]), min_size=1))
def test_a_password_that_was_not_encoded_is_never_shown(parts: list[str]) -> None:
    """Whatever part of the URL it is taken for."""
    url = f"redis://lucy:{SECRET}{''.join(parts)}@h:6379/0?timeout=1s"
    try:
        config = read(url)
    except ValueError as error:
        assert not leaks(everything_said(error))
    else:
        assert not leaks(repr(config))
        assert (config.address, config.username) == ("h:6379", "lucy")


URLS_WITH_SECRETS = [
    f"redis://lucy:{SECRET}@h:6379/2?timeout=1s",
    f"redis://:{SECRET}@[::1]:6379/2?socket_timeout=1&db=2",
    f"valkeys://h?username=lucy&password={SECRET}&pool_size=1",
    f"unix://lucy:{SECRET}@/run/s.sock?db=2",
]


@quick
@given(
    url=st.sampled_from(URLS_WITH_SECRETS),
    where=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    instead=st.text("/?#@:[]%&= 0x\ud800", max_size=3),
)
def test_a_damaged_url_never_shows_its_password(
    url: str, where: tuple[int, int], instead: str
) -> None:
    start, end = sorted(where)
    damaged = url[:start] + instead + url[end:]
    try:
        read(damaged)
    except ValueError as error:
        assert not leaks(everything_said(error))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://lucy:{SECRET}",
        f"redis://h?password=one&{SECRET}=two",
        f"redis://h?password=one&{SECRET}",
        f"rediss://h?ssl_password=one&{SECRET}=two",
        f"redis://:%ff{SECRET}@h",
        f"{SECRET}://h",
        f"redis://h:{SECRET}",
        f"redis://h/{SECRET}",
        f"redis://h?db={SECRET}",
        f"redis://h?timeout={SECRET}",
        f"rediss://h?ssl_cert_reqs={SECRET}",
        f"rediss://h?ssl_certfile=/nowhere&ssl_password={SECRET}",
    ],
)
def test_an_error_never_shows_what_may_be_a_password(url: str) -> None:
    error = failure(lambda: read(url))
    assert isinstance(error, ValueError)
    assert not leaks(everything_said(error))


# URLs: TLS


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA, and a client certificate whose key is there plain and encrypted."""
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    client = authority.issue_cert("client.example")
    client.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    client.private_key_pem.write_to_path(folder / "key.pem")
    key = serialization.load_pem_private_key(client.private_key_pem.bytes(), password=None)
    (folder / "encrypted.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(SECRET.encode()),
        )
    )
    return folder


def context_of(query: str) -> ssl.SSLContext:
    context = read(f"rediss://h?{query}").tls
    assert isinstance(context, ssl.SSLContext)
    return context


@pytest.mark.parametrize(
    ("query", "mode", "checks_name"),
    [
        ("ssl_cert_reqs=required", ssl.CERT_REQUIRED, True),
        ("ssl_cert_reqs=CERT_REQUIRED", ssl.CERT_REQUIRED, True),
        ("ssl_cert_reqs=optional", ssl.CERT_OPTIONAL, True),
        ("ssl_cert_reqs=none", ssl.CERT_NONE, False),
        ("ssl_cert_reqs=CERT_NONE&ssl_check_hostname=false", ssl.CERT_NONE, False),
        ("ssl_check_hostname=true", ssl.CERT_REQUIRED, True),
        ("ssl_check_hostname=False", ssl.CERT_REQUIRED, False),
    ],
)
def test_tls_verifies_chain_and_name_unless_told_otherwise(
    query: str, mode: ssl.VerifyMode, checks_name: bool
) -> None:
    context = context_of(query)
    assert (context.verify_mode, context.check_hostname) == (mode, checks_name)


def test_a_ca_named_in_the_url_is_the_only_one_trusted(pki: Path) -> None:
    context = context_of(f"ssl_ca_certs={pki / 'ca.pem'}")
    assert len(context.get_ca_certs()) == 1
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context_of(f"ssl_ca_path={pki}").get_ca_certs() == []


@pytest.mark.parametrize("key", ["key.pem", f"encrypted.pem&ssl_password={SECRET}"])
def test_a_client_certificate_is_loaded(pki: Path, key: str) -> None:
    assert context_of(f"ssl_certfile={pki}/cert.pem&ssl_keyfile={pki}/{key}").check_hostname


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("ssl_cert_reqs=sometimes", "ssl_cert_reqs in the URL must be required, optional or none"),
        ("ssl_cert_reqs=none&ssl_check_hostname=yes", "ssl_check_hostname needs ssl_cert_reqs"),
        ("ssl_check_hostname=perhaps", "ssl_check_hostname in the URL must be true or false"),
        ("ssl_ca_certs=", "ssl_ca_certs in the URL has no value"),
        ("ssl_ca_certs={}/missing.pem", "ssl_ca_certs or ssl_ca_path cannot be loaded: .*No such"),
        ("ssl_ca_certs={}/key.pem", "ssl_ca_certs or ssl_ca_path cannot be loaded"),
        ("ssl_ca_certs=%00", "ssl_ca_certs or ssl_ca_path cannot be loaded"),
        ("ssl_keyfile={}/key.pem", "ssl_keyfile and ssl_password need ssl_certfile"),
        ("ssl_certfile={}/missing.pem", "ssl_certfile or ssl_keyfile cannot be loaded"),
        ("ssl_certfile={}/cert.pem", "ssl_certfile or ssl_keyfile cannot be loaded"),
        ("ssl_certfile={0}/cert.pem&ssl_keyfile={0}/encrypted.pem", "cannot be loaded"),
    ],
)
def test_bad_tls_parameters_are_value_errors(pki: Path, query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        context_of(query.format(pki))


def test_openssl_never_asks_for_a_password_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would where the key is encrypted and the password is None."""
    passwords: list[object] = []

    def load(_context: ssl.SSLContext, _file: str, _key: str | None, password: object) -> None:
        passwords.append(password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    context_of("ssl_certfile=cert.pem&ssl_keyfile=key.pem")
    assert passwords == [""]


# The environment


@pytest.mark.parametrize(
    ("environ", "host"),
    [
        ({"PEVENSIE_URL": "redis://p", "VALKEY_URL": "redis://v", "REDIS_URL": "redis://r"}, "p"),
        ({"VALKEY_URL": "redis://v", "REDIS_URL": "redis://r"}, "v"),
        ({"REDIS_URL": "redis://r"}, "r"),
        ({"PEVENSIE_URL": "", "VALKEY_URL": " ", "REDIS_URL": "redis://r"}, "r"),
    ],
)
def test_from_env_reads_the_first_variable_that_is_set(environ: dict[str, str], host: str) -> None:
    assert RedisConfig.from_env(environ).host == host


def test_from_env_reads_os_environ_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEVENSIE_URL", "redis://p/3")
    assert RedisConfig.from_env() == RedisConfig(host="p", database=3)


@pytest.mark.parametrize("environ", [{}, {"REDIS_URL": "", "REDIS_HOST": "h"}])
def test_from_env_with_nothing_set_names_the_variables(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="none of PEVENSIE_URL, VALKEY_URL, REDIS_URL is set"):
        RedisConfig.from_env(environ)


def test_an_error_in_a_variable_names_it_and_shows_no_password() -> None:
    environ = {"VALKEY_URL": f"redis://:{SECRET}@h?timeout=5"}
    error = failure(lambda: RedisConfig.from_env(environ))
    assert str(error).startswith("VALKEY_URL: timeout in the URL must be a number with a unit")
    assert not leaks(everything_said(error))
