"""A proxy that does wrong on purpose, between a client and a real server.

It runs in a thread, with an event loop of its own, and speaks TLS to the client if it is given a
context. What it does to the bytes is set from outside, at any time::

    with FaultProxy(server.config, seed=7) as proxy:
        client = connect(proxy.config)
        proxy.delay = (0.0, 0.005)          # seconds before each piece, at random between the two
        proxy.chunk = 1                     # bytes to a piece
        proxy.throttle = 10_000             # bytes a second
        proxy.at_reply(3, "swallow")        # the fourth reply from now on, of what is connected now
        proxy.at_byte(100, "rst")           # after a hundred bytes more
        proxy.blackhole("down")             # until proxy.lift()

Theory. Replies are framed, not understood, so that one can be lost, doubled or preceded by another,
whole, wherever the packets end. A *plan* is armed for one fault at a time and counts from then on,
over the connections that are open then (``new=True``: over the next one to be opened), so that a
fault that is meant for calls does not hit the handshake of the connection that follows. What is
held back is not lost, but late, as in a network that is cut off for a while.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import trustme

from pevensie.redis.config import RedisConfig
from servers import unused_port

PIECE: Final = 64 * 1024
"""Bytes that are read at once."""


class Framing:
    """Where replies end, RESP2 and RESP3, in a stream that comes in any pieces."""

    def __init__(self) -> None:
        self._line = b""
        self._string = 0
        """Bytes still to come of a string, its CRLF included."""
        self._items = 0
        """Items still to come of the reply under way."""

    def pieces(self, data: bytes) -> list[tuple[bytes, bool]]:
        """*data* in pieces, none of which belongs to two replies; whether each ends its reply."""
        found: list[tuple[bytes, bool]] = []
        start = at = 0
        while at < len(data):
            if self._string:
                step = min(self._string, len(data) - at)
                self._string -= step
                at += step
                item_ended = not self._string
            else:
                end = data.find(b"\n", at)
                if end < 0:
                    self._line += data[at:]
                    break
                item_ended = self._header(self._line + data[at : end + 1])
                self._line = b""
                at = end + 1
            self._items -= item_ended
            if not self._items and not self._string:
                found.append((data[start:at], True))
                start = at
        if start < len(data):
            found.append((data[start:], False))
        return found

    def _header(self, line: bytes) -> bool:
        """Whether *line* is an item of its own; else a string follows."""
        self._items = self._items or 1
        kind = line[:1]
        if kind in b"$=!":
            self._string = max(0, int(line[1:]) + 2) if int(line[1:]) >= 0 else 0
            return not self._string
        if kind in b"*~>%|":
            count = max(0, int(line[1:]))
            self._items += {b"%": 2 * count, b"|": 2 * count + 1}.get(kind, count)
        return True


@dataclasses.dataclass
class Plan:
    """One fault, to be done once, so many replies or bytes from now."""

    unit: str
    left: int
    action: str
    count: int
    data: bytes
    connection: range
    """The numbers of the connections that it counts over."""
    kept: bytes = b""
    holding: bool = False


class Link:
    """One connection through the proxy: a stream on either side."""

    def __init__(self, number: int, client: Any, server: Any) -> None:
        self.number = number
        self.client_reader, self.client = client
        self.server_reader, self.server = server
        for writer in (self.client, self.server):
            # So that drain() means "sent". Not 0: in TLS, "full" is as much as that, or more.
            writer.transport.set_write_buffer_limits(high=1)

    def cut(self, how: str) -> None:
        """End it with ``"fin"`` or ``"rst"``: at once, and in TLS without a word of farewell."""
        for writer in (self.client, self.server):
            sock = writer.get_extra_info("socket")
            if how == "rst" and sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class FaultProxy:
    """Listens on a free port of the loopback interface."""

    def __init__(
        self, target: RedisConfig, seed: int, *, tls: tuple[Any, Any, bytes] | None = None
    ) -> None:
        """*target*: where the server listens, without TLS. *tls*: of :func:`contexts`."""
        self._target = target
        self._tls = None if tls is None else tls[0]
        self.authority = b"" if tls is None else tls[2]
        """PEM of who has signed its certificate."""
        self._rng = random.Random(seed)
        self.delay = (0.0, 0.0)
        self.chunk = 0
        self.throttle = 0.0
        self.silent = False
        """Accept, and stay silent."""
        self.accepted = 0
        """Connections, in all."""
        self.faults = 0
        """Plans done, cuts and blackholes."""
        self._plan: Plan | None = None
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._loop.set_debug(False)  # it is the client that is under test
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self._thread.start()
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._held = asyncio.Event()
        self.lift()
        self.port = unused_port()
        self._run(self._listen())
        self.config = dataclasses.replace(
            target, host="127.0.0.1", port=self.port, tls=False if tls is None else tls[1]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- faults ------------------------------------------------------------------------------

    @property
    def open(self) -> int:
        """Connections that are open through it."""
        return len(self._links)

    def at_reply(
        self, n: int, action: str, *, count: int = 1, data: bytes = b"", new: bool = False
    ) -> None:
        """Before the *n*-th reply from now, 0 is the next: ``"swallow"`` it and *count* - 1 more,
        ``"duplicate"`` it, ``"inject"`` *data*, ``"hold"`` it until :meth:`lift`, ``"fin"``,
        ``"rst"``.
        """
        self._arm("reply", n, action, count, data, new)

    def at_byte(self, n: int, action: str, *, new: bool = False) -> None:
        """``"fin"`` or ``"rst"`` after *n* bytes more of replies."""
        self._arm("byte", n, action, 1, b"", new)

    def _arm(self, unit: str, n: int, action: str, count: int, data: bytes, new: bool) -> None:
        numbers = range(self.accepted, self.accepted + 1) if new else range(self.accepted)
        self._plan = Plan(unit, n, action, count, data, numbers)

    def disarm(self) -> bool:
        """Forget the plan; whether it was still to be done."""
        plan, self._plan = self._plan, None
        return plan is not None

    def blackhole(self, *directions: str) -> None:
        """Nothing gets through ``"up"``, to the server, or ``"down"``, until :meth:`lift`."""
        self.faults += 1
        self._soon(lambda: [self._open[direction].clear() for direction in directions])

    def lift(self) -> None:
        """End a blackhole; let go of what a plan holds."""
        events = (*self._open.values(), self._held)
        self._soon(lambda: [event.set() for event in events])

    def cut(self, how: str) -> None:
        """End every connection: ``"fin"`` or ``"rst"``."""
        self.faults += 1
        self._soon(lambda: [link.cut(how) for link in self._links])

    def refuse(self) -> None:
        """Let nobody connect until :meth:`accept`; who is connected is not disturbed."""
        self.faults += 1
        if self._listener is not None:
            self._soon(self._listener.close)
            self._listener = None

    def accept(self) -> None:
        if self._listener is None:
            self._run(self._listen())

    # -- its loop ----------------------------------------------------------------------------

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _soon(self, function: Any) -> None:
        async def call() -> None:
            function()

        self._run(call())

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls, backlog=4096
        )

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.accepted = self.accepted, self.accepted + 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = None
        try:
            if self.silent:
                await reader.read()
                return
            down = (reader, writer)
            try:
                up = await asyncio.open_connection(self._target.host, self._target.port)
            except OSError:
                Link(number, down, down).cut("rst")  # the server is away: so is the way to it
                return
            link = Link(number, down, up)
            self._links.add(link)
            pumps = [asyncio.create_task(pump(link)) for pump in (self._up, self._down)]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                ends = await asyncio.gather(*pumps, return_exceptions=True)
            if any(isinstance(end, OSError) for end in ends):
                link.cut("rst")
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            if link is not None:
                self._links.discard(link)
                link.server.close()
            writer.close()

    async def _up(self, link: Link) -> None:
        while data := await link.client_reader.read(PIECE):
            await self._pass(link.server, data, "up")

    async def _down(self, link: Link) -> None:
        framing = Framing()
        while data := await link.server_reader.read(PIECE):
            passing: list[bytes] = []
            for piece, ends in framing.pieces(data):
                plan = self._plan
                if plan is None or link.number not in plan.connection:
                    passing.append(piece)
                elif plan.left > 0 and (plan.unit == "reply" or plan.left >= len(piece)):
                    passing.append(piece)
                    plan.left -= ends if plan.unit == "reply" else len(piece)
                elif plan.action in ("fin", "rst"):
                    passing.append(piece[: plan.left])
                    await self._pass(link.client, b"".join(passing), "down")
                    self._done()
                    link.cut(plan.action)
                    return
                elif plan.action == "hold":
                    await self._pass(link.client, b"".join(passing), "down")
                    self._held.clear()
                    self._done()
                    await self._held.wait()
                    passing = [piece]
                else:
                    passing += self._altered(plan, piece, ends)
            await self._pass(link.client, b"".join(passing), "down")

    def _altered(self, plan: Plan, piece: bytes, ends: bool) -> list[bytes]:
        """What becomes of a piece of the reply that *plan* is about."""
        if plan.action == "inject":
            self._done()
            return [plan.data, piece]
        plan.kept += piece
        plan.count -= ends
        if plan.count == 0:
            self._done()
        if plan.action == "swallow":
            return []
        return [piece, plan.kept] if plan.count == 0 else [piece]

    def _done(self) -> None:
        self._plan = None
        self.faults += 1

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes, direction: str) -> None:
        step = self.chunk or len(data)
        for start in range(0, len(data), step or 1):
            if self.delay[1]:
                await asyncio.sleep(self._rng.uniform(*self.delay))
            await self._open[direction].wait()
            piece = data[start : start + step]
            writer.write(piece)
            await writer.drain()
            if self.throttle:
                await asyncio.sleep(len(piece) / self.throttle)
            elif step < len(data):
                await asyncio.sleep(0)


def contexts(kind: str = "good") -> tuple[ssl.SSLContext, ssl.SSLContext, bytes]:
    """For *tls*: the proxy's context, that of a client who trusts an authority, and that authority.

    *kind*: what is shown: ``"good"``, ``"expired"``, ``"wrong-host"`` or ``"stranger"``'s.
    """
    authority, shows = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer = trustme.CA() if kind == "stranger" else authority
    expiry = datetime.now(UTC) + timedelta(days=-1 if kind == "expired" else 9)
    names = ("elsewhere.pevensie.dev",) if kind == "wrong-host" else ("localhost", "127.0.0.1")
    issued = issuer.issue_cert(*names, not_before=expiry - timedelta(days=9), not_after=expiry)
    issued.configure_cert(shows)
    trusts = ssl.create_default_context()
    authority.configure_trust(trusts)
    return shows, trusts, authority.cert_pem.bytes()
