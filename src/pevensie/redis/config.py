"""Where a Redis server is and how to treat it, checked once, before any I/O.

A :class:`RedisConfig` is a value: frozen, compared by its fields, shared freely. Whoever holds one
never checks it again. Three rules keep it that way:

- **Every field is checked when the value is made**, by ``dataclasses.replace`` too: a wrong type is
  a ``TypeError``, a wrong value a ``ValueError``, and the message names the field and the fix.
- **A message quotes numbers and type names, never a text that it was given.** Whoever passes a
  whole URL as ``host`` must not find the password in a log. ``repr`` masks the password, and a
  config that has one refuses to be pickled.
- **Importing this module is cheap.** ``ssl``, the URL reader and ``difflib`` are loaded by the
  calls that need them.

Reading a URL is :mod:`pevensie.redis._url`'s job; it returns fields, and they are checked here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, cast

if TYPE_CHECKING:
    import ssl

__all__ = ["RedisConfig", "default_config"]

_ONE_MILLISECOND = timedelta(milliseconds=1)

# Longer than any cache call is worth, and it catches a timeout given in microseconds. It also stays
# far below 2**31 ms, where poll() overflows.
_LONGEST_TIMEOUT = timedelta(days=1)

_URL_VARIABLES = ("PEVENSIE_URL", "VALKEY_URL", "REDIS_URL")


def _name_wrong_fields(cls: type[RedisConfig]) -> type[RedisConfig]:
    """Let ``__init__``, and so ``dataclasses.replace``, suggest a name for a wrong one.

    Done from outside the class so that type checkers see the signature that dataclass generates.
    """
    generated = cls.__init__
    names = [field.name for field in fields(cls)]

    @functools.wraps(generated)
    def __init__(self: RedisConfig, *args: object, **given: Any) -> None:  # noqa: N807
        if args:
            raise TypeError(
                "RedisConfig takes named arguments only, such as RedisConfig(host='localhost'); "
                "for a URL there is RedisConfig.from_url"
            )
        for name in given:
            if name not in names:
                raise TypeError(_unknown_field(name, names))
        generated(self, **given)

    type.__setattr__(cls, "__init__", __init__)
    return cls


@_name_wrong_fields
@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class RedisConfig:
    """Where a Redis server is and how to treat it.

    ``dataclasses.replace(config, host="…")`` makes a changed copy.

    Making one does no I/O. A wrong type raises ``TypeError``, a wrong value ``ValueError``; the
    message names the field and the fix, and never holds a password.

    Attributes:
        host: a host name, an IPv4 address, or an IPv6 address without brackets.
        port: 1 to 65535.
        timeout: the longest that one call may take, waiting, resolving, dialling and retrying
            included: an ``int`` in milliseconds, or a ``timedelta``. From 1 ms to one day.
        pool_size: connections per connected cache, at least 1.
        username: the ACL user; ``None``: the server's default user. Without a password, the
            password sent is empty.
        password: the password, or a callable without arguments that returns it and is asked at
            every dial, say for tokens that expire. ``None``: none. Empty only beside a username.
        database: the number given to ``SELECT``, 0 or more.
        unix_socket: the path of a unix socket, kept as a ``str``. It is used instead of ``host``
            and ``port``, whatever these are.
        tls: ``True``: encrypted, with certificate chain and host name verified; or an
            ``ssl.SSLContext`` for anything else. Not together with ``unix_socket``.
        client_name: what ``CLIENT LIST`` shows: printable ASCII without spaces. Empty: no name.
        namespace: comes before every key as ``<namespace>/``; not empty, without ``:``.
            ``None``: nothing does.
        set_mode: ``"expire"``: ``SET`` and ``EXPIRE`` or ``PERSIST`` in one ``MULTI``;
            ``"single"``: one ``SET key value PX ttl``, for servers that refuse ``MULTI``.
        integrity_checks: hand out replies only once a token came back in its place.
    """

    host: str = "localhost"
    port: int = 6379
    timeout: int | timedelta = 5000
    pool_size: int = 10
    username: str | None = None
    password: str | Callable[[], str] | None = None
    database: int = 0
    unix_socket: str | os.PathLike[str] | None = None
    tls: bool | ssl.SSLContext = False
    client_name: str = "pevensie"
    namespace: str | None = None
    set_mode: Literal["expire", "single"] = "expire"
    integrity_checks: bool = True

    def __post_init__(self) -> None:
        _check_host(self.host)
        _check_whole_number("port", self.port, 1, 65535)
        _check_timeout(self.timeout)
        _check_whole_number("pool_size", self.pool_size, 1)
        _check_username(self.username)
        _check_password(self.password, alone=self.username is None)
        _check_whole_number("database", self.database, 0)
        object.__setattr__(self, "unix_socket", _socket_path(self.unix_socket))
        _check_tls(self.tls, unix_socket=self.unix_socket is not None)
        _check_client_name(self.client_name)
        _check_namespace(self.namespace)
        _check_set_mode(self.set_mode)
        if not isinstance(cast("object", self.integrity_checks), bool):
            raise _wrong_type("integrity_checks", "True or False", self.integrity_checks)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """The configuration that *url* describes. Opens no connection.

        ::

            redis://user:password@host:6379/2?timeout=250ms      valkey:// is the same
            rediss://host                                        TLS; valkeys:// is the same
            unix://user:password@/run/valkey.sock?database=2

        Every part is optional but the scheme, and the path of ``unix``. User name, password and
        values are percent-decoded: ``/ ? # @ %`` and spaces in them are written ``%2F %3F %23 %40
        %25 %20``. Parameters are the fields of this class that have no other place in a URL;
        ``timeout`` has a unit (``250ms``, ``1.5s``, ``1m``), booleans are ``true/false``, ``1/0``,
        ``yes/no`` or ``on/off``.

        What redis-py calls by another name is translated: ``db``, ``max_connections``,
        ``socket_timeout`` and ``socket_connect_timeout`` (in seconds; the longer one counts).
        ``ssl_cert_reqs``, ``ssl_check_hostname``, ``ssl_ca_certs``, ``ssl_ca_path``,
        ``ssl_certfile``, ``ssl_keyfile`` and ``ssl_password`` make an ``ssl.SSLContext``, for
        which the files that they name are read now; chain and host name are verified unless they
        say otherwise. Parameters of redis-py that mean nothing here are accepted and ignored.

        Raises:
            ValueError: the URL cannot be read, a parameter is unknown or given twice, a value is
                wrong, or a certificate cannot be loaded. The message never quotes the URL.
            TypeError: *url* is not a ``str``.
        """
        from pevensie.redis import _url

        return cls(**_url.read(url))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """The configuration in ``PEVENSIE_URL``, else ``VALKEY_URL``, else ``REDIS_URL``.

        An empty variable counts as unset. *environ* stands in for ``os.environ``. Opens no
        connection.

        Raises:
            ValueError: none of them is set, or the URL is wrong as in :meth:`from_url`; the
                message names the variable.
        """
        environ = os.environ if environ is None else environ
        for name in _URL_VARIABLES:
            url = environ.get(name, "")
            if url.strip():
                try:
                    return cls.from_url(url)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        raise ValueError(
            f"none of {', '.join(_URL_VARIABLES)} is set; set one, "
            "such as REDIS_URL=redis://localhost:6379"
        )

    @property
    def timeout_seconds(self) -> float:
        """``timeout`` in seconds, whichever way it was given."""
        if isinstance(self.timeout, timedelta):
            return self.timeout.total_seconds()
        return self.timeout / 1000

    @property
    def address(self) -> str:
        """The server for people: ``localhost:6379``, ``[::1]:6379``, or the unix socket's path."""
        if self.unix_socket is not None:
            return os.fspath(self.unix_socket)
        if ":" in self.host:
            return f"[{self.host}]:{self.port}"
        return f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        shown = self._fields()
        if self.password is not None:
            shown["password"] = "***"  # noqa: S105 - the mask
        listed = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({listed})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        # An ssl.SSLContext cannot be copied, and nothing here changes.
        return self

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """Pickle the fields, to be checked again where they arrive, unless they hold a password.

        A callable password is refused too: with closures and partials nobody can tell what it
        carries.
        """
        if self.password is not None:
            raise TypeError(
                "a RedisConfig with a password cannot be pickled, so that the password is not "
                "stored or sent by accident; call RedisConfig.from_env() where it is needed, or "
                "pickle dataclasses.replace(config, password=None) and put the password back there"
            )
        return functools.partial(type(self), **self._fields()), ()

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def default_config() -> RedisConfig:
    """A local server on port 6379, with a timeout of 5000 milliseconds. No I/O."""
    return RedisConfig()


def _unknown_field(name: str, names: list[str]) -> str:
    from pevensie.redis import _url

    return f"RedisConfig has no field {name}{_url.suggestion(name, names)}"


def _wrong_type(field: str, wanted: str, value: object) -> TypeError:
    return TypeError(f"{field} must be {wanted}, not {type(value).__name__}")


def _text(field: str, value: object, wanted: str = "a str") -> str:
    if not isinstance(value, str):
        raise _wrong_type(field, wanted, value)
    return value


def _check_utf8(field: str, text: str) -> None:
    if not _encodes(text, "utf-8"):
        raise ValueError(f"{field} must be text that UTF-8 can encode: it holds a lone surrogate")


def _encodes(text: str, encoding: str) -> bool:
    """Whether it does; an answer, so that no UnicodeError quotes *text* in a traceback."""
    try:
        text.encode(encoding)
    except UnicodeError:
        return False
    return True


def _check_whole_number(field: str, value: object, low: int, high: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(field, "an int", value)
    if high is not None and not low <= value <= high:
        raise ValueError(f"{field} must be between {low} and {high}, got {_short(value)}")
    if value < low:
        raise ValueError(f"{field} must be at least {low}, got {_short(value)}")


def _short(number: int) -> str:
    """*number*, unless it is so long that str() may refuse it."""
    return str(number) if number.bit_length() <= 64 else "a number of over 64 bits"


def _check_host(value: object) -> None:
    host = _text("host", value)
    if not host:
        raise ValueError("host must not be empty; the default is 'localhost'")
    if any(mark in host for mark in "/@?#"):
        raise ValueError(
            "host must be a host name or an address; for a URL there is RedisConfig.from_url, "
            "for a path unix_socket"
        )
    if not host.isprintable() or " " in host:
        raise ValueError("host must not hold spaces, line breaks or other unprintable characters")
    if "[" in host or "]" in host:
        raise ValueError("host must be without brackets: write the IPv6 address as '::1'")
    if host.count(":") == 1:
        raise ValueError("host must be without a port: give that as port")
    if not _encodes(host, "idna"):
        raise ValueError(
            "host must be a name that DNS can carry: parts of 1 to 63 characters with dots between"
        )


def _check_timeout(value: object) -> None:
    wanted = "an int of milliseconds or a datetime.timedelta, such as 250 or timedelta(seconds=2)"
    if isinstance(value, timedelta):
        too_short, too_long = value < _ONE_MILLISECOND, value > _LONGEST_TIMEOUT
        got = f"{value.total_seconds() * 1000:g} ms"
    elif isinstance(value, int) and not isinstance(value, bool):
        too_short, too_long = value < 1, value > _LONGEST_TIMEOUT // _ONE_MILLISECOND
        got = f"{_short(value)} ms"
    else:
        raise _wrong_type("timeout", wanted, value)
    if too_short:
        raise ValueError(f"timeout must be at least 1 ms, got {got}")
    if too_long:
        raise ValueError(f"timeout must be at most one day (86400000 ms), got {got}")


def _check_username(value: object) -> None:
    if value is None:
        return
    username = _text("username", value, "a str or None")
    if not username:
        raise ValueError("username must not be empty; None means the default user")
    _check_utf8("username", username)


def _check_password(value: object, *, alone: bool) -> None:
    if value is None:
        return
    if callable(value):
        from inspect import iscoroutinefunction

        if iscoroutinefunction(value):
            raise TypeError("password must be a str or a plain callable, not an async function")
        return
    password = _text("password", value, "a str, a callable that returns one, or None")
    if not password and alone:
        raise ValueError("password must not be empty; None means that there is none")
    _check_utf8("password", password)


def _socket_path(value: str | os.PathLike[str] | None) -> str | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    path = _text("unix_socket", path, "a str, an os.PathLike of str, or None")
    if not path or "\0" in path:
        raise ValueError("unix_socket must be a path, not empty and without NUL characters")
    return path


def _check_tls(value: object, *, unix_socket: bool) -> None:
    if not isinstance(value, bool):
        import ssl

        if not isinstance(value, ssl.SSLContext):
            raise _wrong_type("tls", "True, False or an ssl.SSLContext", value)
    if value is not False and unix_socket:
        raise ValueError("tls must be False with unix_socket: a unix socket is local and plain")


def _check_client_name(value: object) -> None:
    name = _text("client_name", value, "a str ('' for no name)")
    if not all("!" <= character <= "~" for character in name):
        raise ValueError(
            "client_name must be printable ASCII without spaces, all that CLIENT SETNAME accepts"
        )


def _check_namespace(value: object) -> None:
    if value is None:
        return
    namespace = _text("namespace", value, "a str or None")
    if not namespace:
        raise ValueError("namespace must not be empty; None means that there is none")
    if ":" in namespace:
        raise ValueError("namespace must not hold a ':', which ends the resource type in a key")
    _check_utf8("namespace", namespace)


def _check_set_mode(value: object) -> None:
    if _text("set_mode", value, "'expire' or 'single'") not in ("expire", "single"):
        raise ValueError("set_mode must be 'expire' or 'single'")
