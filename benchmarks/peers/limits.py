"""The limits: what is left when a client does nothing but its job, and a client written in C.

Neither is a cache that anybody could use. The bare socket has no timeout, no retry, no pool and no
check, and raises whatever happens; it shows what Python and the sockets cost. redis-benchmark makes
no value of a reply and compares none.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from benchmarks.peers.peer import HOST, TTL, Calls, Peer


def _get(name: str) -> bytes:
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name.encode())


def _set(name: str, value: str) -> bytes:
    head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n" % (len(name), name.encode())
    return head + b"$%d\r\n%b\r\n$2\r\nEX\r\n$4\r\n%d\r\n" % (len(value), value.encode(), TTL)


class _Blocking(threading.local):
    """Each thread has a socket of its own, as long as it lives."""

    port = 0

    def __init__(self) -> None:
        import hiredis

        self.socket = socket.create_connection((HOST, self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = hiredis.Reader(encoding="utf-8", notEnoughData=...)
        self.buffer = bytearray(65536)

    def call(self, command: bytes) -> Any:
        self.socket.sendall(command)
        while (reply := self.reader.gets()) is ...:
            count = self.socket.recv_into(self.buffer)
            self.reader.feed(self.buffer, 0, count)  # type: ignore[arg-type] # any buffer will do
        return reply


@contextmanager
def _sockets(port: int, _threads: int) -> Generator[Calls]:
    _Blocking.port = port
    local = _Blocking()
    yield Calls(lambda name: local.call(_get(name)), lambda name, v: local.call(_set(name, v)))
    local.socket.close()


class _Pipelining(asyncio.Protocol):
    """One connection; what is asked for during a turn of the loop is written at its end."""

    def __init__(self) -> None:
        import hiredis

        self.reader = hiredis.Reader(encoding="utf-8", notEnoughData=...)
        self.loop = asyncio.get_running_loop()
        self.waiting: deque[asyncio.Future[Any]] = deque()
        self.commands: list[bytes] = []
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not ...:
            self.waiting.popleft().set_result(reply)

    def call(self, command: bytes) -> asyncio.Future[Any]:
        if not self.commands:
            self.loop.call_soon(self.flush)
        self.commands.append(command)
        future = self.loop.create_future()
        self.waiting.append(future)
        return future

    def flush(self) -> None:
        self.transport.write(b"".join(self.commands))
        self.commands.clear()


@asynccontextmanager
async def _protocol(port: int, _tasks: int) -> AsyncGenerator[Calls]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(_Pipelining, HOST, port)
    call = protocol.call
    yield Calls(lambda name: call(_get(name)), lambda name, value: call(_set(name, value)))
    transport.close()


BARE_SOCKET: Final = Peer(
    name="bare-socket",
    open=_sockets,
    open_async=_protocol,
    packages=("hiredis",),
    stored="OK",
    has_many=False,
    kind="limit",
    note="hiredis and a socket per thread, or for all tasks; no timeout, retry, pool or check",
)
REDIS_BENCHMARK: Final = Peer(
    name="redis-benchmark",
    command="redis-benchmark",
    kind="limit",
    note="in C: `-c` threads or tasks, from 200 tasks on `-c 50 -P 16`; it looks at no reply",
)

PEERS: Final = (BARE_SOCKET, REDIS_BENCHMARK)
