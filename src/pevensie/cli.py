"""The command ``pevensie``: a demo, a private server, and the four verbs for a look at a cache.

- Results go to stdout, notes and errors to stderr. With ``--json``, stdout gets exactly one JSON
  document, whatever happens, and stderr nothing.
- An error is one line and a hint, see ``_cli_errors``.
- Whatever a command needs is imported when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

import pevensie
from pevensie._cli_errors import FAILED, MISUSED, OK, SEE_HELP, CliError, explain, without_urls

if TYPE_CHECKING:
    from pevensie._demo import Section
    from pevensie.cache import Cache
    from pevensie.redis import RedisConfig

INTERRUPTED: Final = 130
"""The exit code of a command that Ctrl-C ended, as shells have it."""

DESCRIPTION: Final = "Pevensie, the cache on Redis and Valkey: a demo, a private server, a look."

WHICH_SERVER: Final = """\
The server is --url, else $PEVENSIE_URL, $VALKEY_URL or $REDIS_URL, else redis://localhost:6379.
Other users can read --url with ps, so a password belongs in the environment. The keys of a cache
with a namespace: redis://host?namespace=NAME.

"""

EXIT_CODES: Final = """\
Exit codes: 0 it worked; 1 it failed, or get found no value; 2 the command is wrong.
With --json, stdout gets one JSON document, for an error {"error", "message", "hint"}.
"""


class _Parser(argparse.ArgumentParser):
    """Raises, where argparse prints the usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise CliError(message, f"see {self.prog} --help")


# -- what was asked ------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        code = _run(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; and Python would flush once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(words: list[str]) -> int:
    if not words:
        _parser().print_help(sys.stderr)
        return MISUSED
    try:
        args = _parse(words)
        return _COMMANDS[args.command](args)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - never a traceback
        failure = explain(error)
    message = without_urls(failure.message, words)
    hint = without_urls(failure.hint, words)
    options = words[: words.index("--")] if "--" in words else words
    if "--json" in options:
        print(json.dumps({"error": failure.name, "message": message, "hint": hint}))
    else:
        print(f"error: {message}\n hint: {hint}", file=sys.stderr)
    return failure.code


def _parse(words: list[str]) -> argparse.Namespace:
    args, unknown = _parser().parse_known_args(words)
    if unknown:
        option = unknown[0].partition("=")[0]
        if option.startswith("-"):
            raise CliError(
                f"there is no option {option}",
                f"see {_prog(args)} --help; what begins with a dash and is no option goes after --",
            )
        raise CliError(
            "there are more words than this command takes",
            f"see {_prog(args)} --help; put quotes around a value with spaces",
        )
    if args.command is None:
        raise CliError("no command was given", SEE_HELP)
    return args


def _prog(args: argparse.Namespace) -> str:
    return "pevensie" if args.command is None else f"pevensie {args.command}"


def _parser() -> _Parser:
    as_it_stands = argparse.RawDescriptionHelpFormatter
    json_option = _Parser(add_help=False)
    json_option.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print one JSON document and nothing else",
    )
    url_option = _Parser(add_help=False)
    url_option.add_argument("--url", help="such as redis://localhost:6379")

    parser = _Parser(
        "pevensie",
        description=DESCRIPTION,
        epilog=WHICH_SERVER + EXIT_CODES,
        formatter_class=as_it_stands,
    )
    parser.add_argument("--version", action="version", version=f"pevensie {pevensie.__version__}")
    parser.add_argument("--json", action="store_true", help="print one JSON document, see below")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, text: str, *, url: bool = True) -> _Parser:
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            parents=[json_option, url_option] if url else [json_option],
            epilog=EXIT_CODES if name in ("demo", "serve") else WHICH_SERVER + EXIT_CODES,
            formatter_class=as_it_stands,
        )

    add("demo", "see it work, on a private server or on that of --url (which it leaves clean)")
    serve = add("serve", "run a private, empty server until Ctrl-C, and print its URL", url=False)
    where = serve.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, help="on 127.0.0.1; a free one if left out")
    where.add_argument("--unix-socket", action="store_true", help="on a unix socket instead")
    add("ping", "ask the server for an answer, and time it")
    get = add("get", "print a value; exit code 1 if there is none")
    store = add("set", "store a value")
    delete = add("delete", "remove values; it is no error if there are none")
    for command in (get, store, delete):
        command.add_argument("resource_type", metavar="RESOURCE_TYPE", help="such as ship")
    get.add_argument("key", metavar="KEY", help="such as dawn-treader")
    store.add_argument("key", metavar="KEY", help="such as dawn-treader")
    store.add_argument("value", metavar="VALUE", help="the value; - reads all of stdin, as it is")
    store.add_argument(
        "--ttl", type=_ttl, help="60, 1.5, 250ms, 5m, 12h or 7d; if left out it never expires"
    )
    delete.add_argument("keys", metavar="KEY", nargs="+")
    return parser


def _ttl(text: str) -> float:
    """Seconds, from a number with or without a unit."""
    from pevensie.cache._values import MAX_TTL_SECONDS

    units = {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600, "d": 86400}
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            "must be seconds, or a number with a unit: 60, 1.5, 250ms, 5m, 12h or 7d"
        )
    seconds = float(match[1]) * units[match[2]]
    if not 0 < seconds <= MAX_TTL_SECONDS:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 100 years")
    return seconds


# -- the commands --------------------------------------------------------------------------------


def _say(args: argparse.Namespace, text: str, document: dict[str, object]) -> None:
    print(json.dumps(document) if args.json else text, flush=True)


def _ping(args: argparse.Namespace) -> int:
    config = _config(args.url)
    with _app_cache(config).connect() as c:
        milliseconds = round(c.ping() * 1000, 3)
    _say(
        args,
        f"{config.address} answered in {milliseconds:.2f} ms",
        {"server": config.address, "milliseconds": milliseconds},
    )
    return OK


def _get(args: argparse.Namespace) -> int:
    with _connected(args) as c:
        value = c.get(args.resource_type, args.key)
    if args.json:
        _say(args, "", {"found": value is not None, "value": value})
    elif value is None:
        print("no value under this key", file=sys.stderr)
    else:  # the bytes that are stored and a line feed, whatever this terminal's encoding
        sys.stdout.buffer.write(value.encode() + b"\n")
    return FAILED if value is None else OK


def _set(args: argparse.Namespace) -> int:
    value = _stdin() if args.value == "-" else args.value
    with _connected(args) as c:
        c.set(args.resource_type, args.key, value, ttl_seconds=args.ttl)
    _say(args, "OK", {"stored": True, "ttl_seconds": args.ttl})
    return OK


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise ValueError("stdin must be UTF-8; encode it, as Base64 say") from None


def _delete(args: argparse.Namespace) -> int:
    with _connected(args) as c:
        deleted = c.delete_many(args.resource_type, args.keys)
    _say(args, f"{deleted} deleted", {"deleted": deleted})
    return OK


def _serve(args: argparse.Namespace) -> int:
    from pevensie.redis import embedded

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with embedded(unix_socket=args.unix_socket, port=args.port) as config:
            url = _url(config)
            _say(args, url, {"url": url})
            if not args.json:
                note = f"elsewhere: export PEVENSIE_URL={url}  (Ctrl-C ends it)"
                print(f"a private, empty server; {note}", file=sys.stderr, flush=True)
            _wait_for_its_end(config)
        raise CliError(
            "the server ended by itself", "was it killed?", name="StartError", code=FAILED
        )
    except KeyboardInterrupt:  # the way to end it
        return OK
    finally:
        signal.signal(signal.SIGTERM, before)


def _url(config: RedisConfig) -> str:
    from urllib.parse import quote

    path = config.unix_socket
    return f"redis://{config.address}" if path is None else f"unix://{quote(os.fspath(path))}"


def _wait_for_its_end(config: RedisConfig) -> None:
    """Wait on a connection; once it is closed, look whether another can be opened."""
    import socket

    while True:
        try:
            if config.unix_socket is None:
                sock = socket.create_connection((config.host, config.port))
            else:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(os.fspath(config.unix_socket))
            with sock:
                sock.recv(1)
        except ConnectionResetError:
            pass
        except OSError:
            return
        time.sleep(0.1)  # should somebody keep killing this client


def _demo(args: argparse.Namespace) -> int:
    from pevensie import _demo
    from pevensie.redis import embedded

    if args.url is None:
        with embedded() as config:
            return _show(args, _demo.run(config, private=True))
    return _show(args, _demo.run(_config(args.url), private=False))


def _show(args: argparse.Namespace, sections: Iterator[Section]) -> int:
    """Show each section when it is done, and at the end whether every step held."""
    from pevensie._demo_view import viewer

    show = None if args.json else viewer()
    done: list[Section] = []
    for section in sections:
        done.append(section)
        if show:
            show(section)
    held = [step.held for section in done for step in section.steps]
    failed = held.count(False)
    verdict = f"{failed} of {len(held)} steps FAILED." if failed else f"All {len(held)} steps held."
    document = [
        {"title": title, "steps": [step._asdict() for step in steps]} for title, steps in done
    ]
    _say(args, verdict, {"held": not failed, "sections": document})
    return FAILED if failed else OK


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "demo": _demo,
    "serve": _serve,
    "ping": _ping,
    "get": _get,
    "set": _set,
    "delete": _delete,
}


# -- servers -------------------------------------------------------------------------------------


def _connected(args: argparse.Namespace) -> Cache:
    """The cache, which checks its arguments before it connects."""
    return _app_cache(_config(args.url)).lazy()


def _app_cache(config: RedisConfig) -> pevensie.PevensieCache:
    from pevensie.redis import new_cache_driver

    return pevensie.PevensieCache(new_cache_driver(config))


def _config(url: str | None) -> RedisConfig:
    """Where the server is: *url*, else the environment, else the default, as redis-cli has it."""
    from pevensie.redis import RedisConfig, default_config
    from pevensie.redis.config import _URL_VARIABLES

    source = "--url"
    if url is None:
        given = [name for name in _URL_VARIABLES if os.environ.get(name, "").strip()]
        if not given:
            return default_config()
        source = given[0]
    if (os.environ[source] if url is None else url).strip().startswith("memory:"):
        raise CliError(
            f"{source}: memory:// lives inside one process, so there is nothing to ask from here",
            'use it in Python, pevensie.from_url("memory://"), or start a server: pevensie serve',
        )
    if url is None:
        return RedisConfig.from_env()
    try:
        return RedisConfig.from_url(url)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
