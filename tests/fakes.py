"""A server that speaks bytes: it answers as it is told to, right or wrong.

By default it answers the handshake, and GET with the key in upper case, as a tagged reply::

    with FakeServer() as fake:
        fake.answer[b"GET"] = lambda words: b"-OOM no\\r\\n"
        connect(fake.config)

An answer is bytes to send, ``None`` for silence, :data:`CLOSE` or :data:`RESET`. What
``fake.transform`` gets are the answers to what came in one piece, after the handshake.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Final, Self

import hiredis

from pevensie.redis import RedisConfig

CLOSE: Final = b"__close__"
RESET: Final = b"__reset__"

Answer = Callable[[list[bytes]], bytes | None]


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


class FakeServer:
    """Listens on a free port of the loopback interface; one thread per connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.config = RedisConfig(
            host="127.0.0.1", port=self._listener.getsockname()[1], timeout=2000
        )
        self.answer: dict[bytes, Answer] = {
            b"AUTH": lambda words: b"+OK\r\n",
            b"SELECT": lambda words: b"+OK\r\n",
            b"CLIENT": lambda words: b"+OK\r\n",
            b"ECHO": lambda words: bulk(words[1]),
            b"PING": lambda words: b"+PONG\r\n",
            b"GET": lambda words: bulk(words[1].upper()),
            b"MULTI": lambda words: b"+OK\r\n",
            b"SET": lambda words: b"+QUEUED\r\n",
            b"EXPIRE": lambda words: b"+QUEUED\r\n",
            b"PERSIST": lambda words: b"+QUEUED\r\n",
            b"INCRBY": lambda words: b":1\r\n",
            b"DEL": lambda words: b":1\r\n",
        }
        self.transform: Callable[[list[bytes]], bytes] = b"".join
        """From the answers to what came in one piece, after the handshake, to what is sent."""
        self.greeting = b""
        """Sent before anything was asked for."""
        self.seen: list[list[bytes]] = []
        """Every command, the handshakes' included."""
        self.accepted = 0
        """Connections, in all."""
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def commands(self, name: bytes) -> list[list[bytes]]:
        """The commands of that *name* that came."""
        return [words for words in self.seen if words[0] == name]

    def push(self, data: bytes) -> None:
        """Send *data* on every open connection, unasked."""
        for sock in self._sockets:
            try:
                sock.sendall(data)
            except OSError:
                pass

    def close_connections(self) -> None:
        """End every open connection, politely."""
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def stop(self) -> None:
        """Go away, for good."""
        if self._listener.fileno() != -1:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.close_connections()

    def freeze(self) -> None:
        """Answer nothing any more but handshakes."""
        self.transform = lambda answers: b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join(5)
        for sock in self._sockets:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._sockets.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        reader = hiredis.Reader(notEnoughData=Ellipsis)
        greeted = False
        queued: list[bytes] | None = None
        try:
            sock.sendall(self.greeting)
            while data := sock.recv(1 << 20):
                reader.feed(data)
                answers: list[bytes] = []
                while (words := reader.gets()) is not Ellipsis:
                    self.seen.append(words)
                    reply: bytes | None
                    if words[0] == b"EXEC" and b"EXEC" not in self.answer:
                        reply = b"*%d\r\n%b" % (len(queued or []), b"".join(queued or []))
                    else:
                        reply = self._reply(words)
                    if words[0] == b"MULTI":
                        queued = []
                    elif queued is not None and words[0] in (b"SET", b"EXPIRE", b"PERSIST"):
                        queued.append(b"+OK\r\n" if words[0] == b"SET" else b":1\r\n")
                    if reply in (CLOSE, RESET):
                        sock.sendall(b"".join(answers))
                        if reply is RESET:
                            linger = struct.pack("ii", 1, 0)
                            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                            sock.close()
                        else:
                            sock.shutdown(socket.SHUT_RDWR)
                        return
                    if reply is not None:
                        answers.append(reply)
                sock.sendall(self.transform(answers) if greeted else b"".join(answers))
                greeted = True
        except OSError:
            pass

    def _reply(self, words: list[bytes]) -> bytes | None:
        answer: Any = self.answer.get(words[0].upper())
        return b"-ERR unknown command\r\n" if answer is None else answer(words)
