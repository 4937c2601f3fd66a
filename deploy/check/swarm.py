"""Thousands of real WebSocket clients in one event loop, each with a log of its events."""

import asyncio
import base64
import json
import os
import re
import time
from dataclasses import dataclass, field

# The wait after a failure, in seconds. A client that got no wait in its close frame reconnects at once.
AFTER_FAILURE = 0.2


@dataclass
class Session:
    """One socket from 101 to its end."""

    dialled: float
    opened: float
    first: int | None = None
    last: int | None = None
    received: int = 0
    closed: float | None = None
    code: int = 1006
    reason: str = ""


@dataclass
class History:
    """The log of one client."""

    sessions: list = field(default_factory=list)
    failed: list = field(default_factory=list)   # (time, status; 0 where the connection ended)


class _Socket(asyncio.Protocol):
    def __init__(self, client):
        self.client, self.buffer, self.session = client, b"", None
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.client.request)

    def data_received(self, data):
        self.buffer += data
        if self.session is None:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            status = int(head[9:12])
            if status != 101:
                self.client.history.failed.append((time.monotonic(), status))
                self.transport.abort()
                return
            self.session = Session(self.client.dialled, time.monotonic())
            self.client.history.sessions.append(self.session)
            self.client.opened()
            self.buffer = rest
        self.frames()

    def frames(self):
        while len(self.buffer) >= 2:
            opcode, length, start = self.buffer[0] & 15, self.buffer[1], 2
            if length == 126:
                if len(self.buffer) < 4:
                    return
                length, start = int.from_bytes(self.buffer[2:4], "big"), 4
            if len(self.buffer) < start + length:
                return
            payload, self.buffer = self.buffer[start:start + length], self.buffer[start + length:]
            if opcode == 1:
                self.event(json.loads(payload)["n"])
            elif opcode == 9:
                self.send(10, payload)
            elif opcode == 8:
                self.session.code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else 1005
                self.session.reason = payload[2:].decode()
                self.session.closed = time.monotonic()
                self.send(8, payload[:2])
                self.transport.close()
                return

    def event(self, n):
        session = self.session
        session.first = n if session.first is None else session.first
        session.last, session.received = n, session.received + 1

    def send(self, opcode, payload):
        # A mask of zeroes is valid (RFC 6455 5.3).
        self.transport.write(bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload)

    def connection_lost(self, _error):
        if self.session is None:
            if not self.client.history.failed or self.client.history.failed[-1][0] < self.client.dialled:
                self.client.history.failed.append((time.monotonic(), 0))
        elif self.session.closed is None:
            self.session.closed = time.monotonic()
        if not self.done.done():
            self.done.set_result(None)


class Client:
    """Connects, stays, and reconnects as the close frame says."""

    def __init__(self, port, host, path, token, opened):
        key = base64.b64encode(os.urandom(16)).decode()
        self.request = (f"GET {path}?token={token} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode()
        self.port, self.history, self.opened, self.dialled = port, History(), opened, 0.0

    async def run(self, stop):
        while not stop.is_set():
            self.dialled = time.monotonic()
            sessions = len(self.history.sessions)
            try:
                _, protocol = await asyncio.get_running_loop().create_connection(lambda: _Socket(self), "127.0.0.1", self.port)
            except OSError:
                self.history.failed.append((time.monotonic(), 0))
                await asyncio.sleep(AFTER_FAILURE)
                continue
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait([protocol.done, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if stop.is_set():
                protocol.transport.abort()
                return
            if 4500 <= (self.history.sessions[-1].code if self.history.sessions else 0) <= 4999:
                return   # "do not reconnect"
            if len(self.history.sessions) == sessions:
                await asyncio.sleep(AFTER_FAILURE)
            else:
                await asyncio.sleep(wait_named(self.history.sessions[-1].reason) or 0)


def wait_named(reason):
    """Returns the wait in seconds from the reason of a close frame."""
    named = re.search(r"retry_after_ms=(\d+)", reason)
    return int(named[1]) / 1000 if named else None
