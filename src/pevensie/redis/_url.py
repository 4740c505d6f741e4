"""A Redis URL, read into fields of :class:`~pevensie.redis.config.RedisConfig`.

::

    scheme://user:password@host:port/database?parameter=value&parameter=value
             `------- authority ------'
    unix://user:password@/path/of/the/socket?parameter=value

What a URL holds is only taken apart here; whether a port or a name will do, the config checks.

**No message quotes the URL**, nor any part but the name of a parameter: the password is in there.
One that was not percent-encoded ends up in the wrong place (``redis://:pa/ss@host`` reads as port
``pa``, path ``/ss@host``), so the characters that betray this, a ``#`` anywhere and an ``@`` after
the authority, are refused before any part is looked at. For the same reason the URL is split here
and not by ``urlsplit``, whose errors quote the netloc, and errors that may hold a part of the URL
are dropped, not chained.

**One REDIS_URL serves several libraries**, so redis-py's parameters are translated, or ignored
where that cannot surprise; anything else is refused: a setting that silently does nothing is worse
than an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    import ssl

_TLS_SCHEMES = ("rediss", "valkeys")
_SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")

_SAME_AS = {
    "db": "database",
    "max_connections": "pool_size",
    "socket_timeout": "timeout",
    "socket_connect_timeout": "timeout",
    "ssl": "tls",
    "unix_socket_path": "unix_socket",
    "redis+socket": "unix",  # kombu's scheme
}
"""What others call it, and what it is called here."""

_IGNORED: dict[str, tuple[str, ...] | None] = {
    "decode_responses": None,  # text comes back as str here in any case
    "encoding": ("utf-8", "utf8"),  # the one that is used here
    "encoding_errors": ("strict",),  # likewise
    "health_check_interval": None,  # idle connections are checked before use in any case
    "legacy_responses": None,  # the shape of redis-py's own replies
    "protocol": ("2", "3"),  # either gives the same strings
    "retry_on_timeout": None,  # what may be sent twice is decided per command, within the timeout
    "socket_keepalive": None,  # a dead connection is noticed by the deadline of a call
    "socket_read_size": None,  # a buffer's size
}
"""Parameters of redis-py that mean nothing here, and the values for which that is true."""

_NEEDS_A_CONTEXT = "is not read from a URL: give RedisConfig an ssl.SSLContext as tls"

_ELSEWHERE = {
    "host": "is not a parameter: it belongs in the URL itself, redis://host:6379",
    "port": "is not a parameter: it belongs in the URL itself, redis://host:6379",
    "unix_socket": "is not a parameter: write unix:///path/of/the/socket",
    "unix_socket_path": "is not a parameter: write unix:///path/of/the/socket",
    "tls": "is not a parameter: rediss:// and valkeys:// mean TLS",
    "ssl": "is not a parameter: rediss:// and valkeys:// mean TLS",
    "credential_provider": "is not read from a URL: give RedisConfig a callable as password",
    "ssl_ca_data": _NEEDS_A_CONTEXT,
    "ssl_ciphers": _NEEDS_A_CONTEXT,
    "ssl_exclude_verify_flags": _NEEDS_A_CONTEXT,
    "ssl_include_verify_flags": _NEEDS_A_CONTEXT,
    "ssl_min_version": _NEEDS_A_CONTEXT,
    "ssl_ocsp_context": _NEEDS_A_CONTEXT,
    "ssl_ocsp_expected_cert": _NEEDS_A_CONTEXT,
    "ssl_validate_ocsp": _NEEDS_A_CONTEXT,
    "ssl_validate_ocsp_stapled": _NEEDS_A_CONTEXT,
}
"""Names that are right somewhere, and where."""


def read(url: str) -> dict[str, Any]:
    """The fields that *url* sets. Reads certificate files if it names some; no other I/O.

    Raises:
        ValueError: it cannot be read; the message says what to write instead and quotes nothing.
        TypeError: it is not a ``str``.
    """
    scheme, authority, path, query = _split(url)
    given = _parameters(query)
    userinfo, _, server = authority.rpartition("@")
    found = [*_credentials(userinfo)]
    if scheme == "unix":
        found += _unix_socket(server, path)
    else:
        found += [*_host_and_port(server), *_database(path)]
    found += [*_tls(scheme, given), *_settings(given)]
    return _merged(found)


def suggestion(name: str, candidates: Iterable[str]) -> str:
    """``; did you mean host?``, or what there is to choose from if nothing is near."""
    from difflib import get_close_matches

    candidates = list(candidates)
    known_as = _SAME_AS.get(name)
    near = [known_as] if known_as in candidates else get_close_matches(name.lower(), candidates, 1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(candidates)}"


def _split(url: object) -> tuple[str, str, str, str]:
    """Scheme, authority, path and query, still encoded; refuses what hints at a stray password."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    url = url.strip()
    if not url.isprintable() or " " in url:
        raise ValueError("the URL holds a space, line break or the like: write %20 for a space")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError("the URL has no scheme: it begins with redis://, rediss:// or unix://")
    if scheme not in _SCHEMES:
        raise ValueError(f"the URL has an unknown scheme{suggestion(scheme, _SCHEMES)}")
    if "#" in rest:
        raise ValueError("the URL holds a '#': write %23, in a password too")
    head, _, query = rest.partition("?")
    authority, slash, path = head.partition("/")
    if "@" in path or "@" in query:
        raise ValueError(
            "the URL holds an '@' after its host: in a user name or password write %2F for '/' "
            "and %3F for '?', and elsewhere %40 for '@'"
        )
    return scheme, authority, slash + path, query


def _decoded(what: str, text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        pass  # raised below instead: this one holds the text
    raise ValueError(f"the {what} in the URL is not UTF-8 after percent-decoding")


_Found = tuple[str, object]


def _credentials(userinfo: str) -> list[_Found]:
    username, _, password = userinfo.partition(":")
    found = (
        ("username", _decoded("user name", username)),
        ("password", _decoded("password", password)),
    )
    return [(field, text) for field, text in found if text]


def _unix_socket(server: str, path: str) -> list[_Found]:
    if server or not path:
        raise ValueError("a unix URL has a path and no host: unix:///path, with three slashes")
    return [("unix_socket", _decoded("path", path))]


def _host_and_port(server: str) -> list[_Found]:
    if server.startswith("["):
        host, closed, port = server[1:].partition("]")
        good = closed and ":" in host and port[:1] in ("", ":")
        port = port[1:]
    else:
        host, _, port = server.partition(":")
        good = ":" not in port
    if not good:
        raise ValueError(
            "the URL holds more than a host and a port: an IPv6 address has brackets, "
            "redis://[::1]:6379, and what comes before the host ends with an '@'"
        )
    found: list[_Found] = []
    if host:
        found.append(("host", _decoded("host", host)))
    if port:
        found.append(("port", _port(port)))
    return found


def _port(text: str) -> int:
    # Checked here and not by the config, which quotes the number: where somebody forgot "@host" it
    # is the password.
    if not _is_whole_number(text) or not 1 <= int(text) <= 65535:
        raise ValueError("the port in the URL must be a number between 1 and 65535")
    return int(text)


def _database(path: str) -> list[_Found]:
    number = path.removeprefix("/").removesuffix("/")
    if not number:
        return []
    if not _is_whole_number(number):
        raise ValueError("the path of the URL must be a database number, as in redis://host/0")
    return [("database", int(number))]


def _parameters(query: str) -> dict[str, str]:
    """The decoded parameters, each one known and given once."""
    given: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, equals, text = part.partition("=")
        if not equals:
            raise ValueError(
                "the URL holds a parameter without a value: write name=value, "
                "and %26 for an '&' inside a value"
            )
        if name not in _READERS and name not in _TLS_PARAMETERS and name not in _IGNORED:
            raise _unknown_parameter(name, after_password=not given.keys().isdisjoint(_SECRETS))
        if name in given:
            raise ValueError(f"the URL gives {name} twice: keep one")
        given[name] = _decoded(name, text.replace("+", " "))  # as parse_qs and so redis-py do
    return given


def _unknown_parameter(name: str, *, after_password: bool) -> ValueError:
    if name in _ELSEWHERE:
        return ValueError(f"{name} {_ELSEWHERE[name]}")
    if after_password or not name.isidentifier():
        # It may be the rest of a password: password=one&two=three
        return ValueError(
            "the URL holds an unknown parameter, not named here since it may be part of a "
            "password: write %26 for an '&' inside a value"
        )
    known = [*_READERS, *_TLS_PARAMETERS]
    return ValueError(f"the URL holds an unknown parameter {name}{suggestion(name, known)}")


def _settings(given: dict[str, str]) -> list[_Found]:
    for name, allowed in _IGNORED.items():
        if allowed and name in given and given[name].lower() not in allowed:
            raise ValueError(f"{name} in the URL can only be {' or '.join(allowed)}")
    found: list[_Found] = [
        (_SAME_AS.get(name, name), reader(name, given[name]))
        for name, reader in _READERS.items()
        if name in given and name not in _SOCKET_TIMEOUTS
    ]
    # They bound two phases of a call and ours bounds the whole, so neither gets less than it had.
    timeouts = [_seconds(name, given[name]) for name in _SOCKET_TIMEOUTS if name in given]
    if timeouts:
        found.append(("timeout", _as_timeout(max(timeouts))))
    return found


def _merged(found: Iterable[_Found]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for field, value in found:
        if merged.setdefault(field, value) != value:
            raise ValueError(f"the URL gives {field} in two places, and not the same: keep one")
    return merged


def _plain_text(name: str, text: str) -> str:  # noqa: ARG001 - a reader like the others
    return text


def _is_whole_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,10}", text) is not None


def _whole_number(name: str, text: str) -> int:
    if not _is_whole_number(text):
        raise ValueError(f"{name} in the URL must be a whole number")
    return int(text)


_TRUE = ("true", "1", "yes", "on", "t", "y")
_FALSE = ("false", "0", "no", "off", "f", "n")


def _flag(name: str, text: str) -> bool:
    text = text.lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(f"{name} in the URL must be true or false")
    return text in _TRUE


_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})"
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000}


def _duration(name: str, text: str) -> int | timedelta:
    match = re.fullmatch(_NUMBER + "(ms|s|m)", text)
    if match is None:
        raise ValueError(
            f"{name} in the URL must be a number with a unit: {name}=250ms, {name}=2s or {name}=1m"
        )
    number, unit = match.groups()
    return _as_timeout(timedelta(milliseconds=float(number) * _MILLISECONDS[unit]))


def _seconds(name: str, text: str) -> timedelta:
    if re.fullmatch(_NUMBER, text) is None:
        raise ValueError(f"{name} in the URL must be a number of seconds, such as {name}=0.5")
    return timedelta(seconds=float(text))


def _as_timeout(duration: timedelta) -> int | timedelta:
    """Whole milliseconds as an int, as people write them, so that equal configs are equal."""
    milliseconds, rest = divmod(duration, timedelta(milliseconds=1))
    return duration if rest else milliseconds


_SOCKET_TIMEOUTS = ("socket_timeout", "socket_connect_timeout")
_SECRETS = ("password", "ssl_password")

_READERS: dict[str, Callable[[str, str], object]] = {
    "timeout": _duration,
    "pool_size": _whole_number,
    "username": _plain_text,
    "password": _plain_text,
    "database": _whole_number,
    "client_name": _plain_text,
    "namespace": _plain_text,
    "set_mode": _plain_text,
    "integrity_checks": _flag,
    "db": _whole_number,
    "max_connections": _whole_number,
    "socket_timeout": _seconds,
    "socket_connect_timeout": _seconds,
}

_TLS_PARAMETERS = (
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
)


def _tls(scheme: str, given: dict[str, str]) -> list[_Found]:
    asked = {name: given[name] for name in _TLS_PARAMETERS if name in given}
    if scheme in _TLS_SCHEMES:
        return [("tls", _context(asked) if asked else True)]
    if asked:
        raise ValueError(f"{next(iter(asked))} needs TLS: write rediss:// or valkeys://")
    return []


def _context(asked: dict[str, str]) -> ssl.SSLContext:
    """What redis-py's parameters ask for. A CA that they name is the only one trusted."""
    import ssl

    empty = next((name for name, text in asked.items() if not text), None)
    if empty:
        raise ValueError(f"{empty} in the URL has no value: give it one or leave it out")
    modes = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
    requirement = asked.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if requirement not in modes:
        raise ValueError("ssl_cert_reqs in the URL must be required, optional or none")
    verifies = requirement != "none"
    checks_name = verifies
    if "ssl_check_hostname" in asked:
        checks_name = _flag("ssl_check_hostname", asked["ssl_check_hostname"])
    if checks_name and not verifies:
        raise ValueError("ssl_check_hostname needs ssl_cert_reqs=required: leave one of them out")

    context = _trusting(asked.get("ssl_ca_certs"), asked.get("ssl_ca_path"))
    context.check_hostname = checks_name
    context.verify_mode = modes[requirement]
    _load_certificate(context, asked)
    return context


def _trusting(file: str | None, folder: str | None) -> ssl.SSLContext:
    import ssl

    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"ssl_ca_certs or ssl_ca_path cannot be loaded: {error}") from error


def _load_certificate(context: ssl.SSLContext, asked: dict[str, str]) -> None:
    file, key = asked.get("ssl_certfile"), asked.get("ssl_keyfile")
    if file is None:
        if key is not None or "ssl_password" in asked:
            raise ValueError("ssl_keyfile and ssl_password need ssl_certfile: give that too")
        return
    # Without any password OpenSSL would ask for one on the terminal.
    password = asked.get("ssl_password", "")
    try:
        context.load_cert_chain(file, key, password)
    except (OSError, ValueError) as error:
        raise ValueError(f"ssl_certfile or ssl_keyfile cannot be loaded: {error}") from error
