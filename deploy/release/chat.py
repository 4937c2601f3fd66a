"""Runs `lockgate dev` and sends a message from one of its users to the other, over real sockets."""

import base64
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
from urllib.parse import urlsplit
from urllib.request import urlopen

from project import Failed

# An emulated binary on a busy machine is slow.
DEADLINE = 120


def chat(command, **options):
    """Starts the program, lets bob hear alice, and returns the seconds that it took."""
    began = time.monotonic()
    words = [*command, "dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options) as process, \
            contextlib.ExitStack() as sockets:
        try:
            if not select.select([process.stdout], [], [], DEADLINE)[0]:
                raise Failed(f"{words}: no line after {DEADLINE} s")
            line = process.stdout.readline()
            if not line:
                raise Failed(f"{words}: {process.communicate(timeout=10)[1].decode()[-2000:]}")
            told = json.loads(line)
            with urlopen(told["page"], timeout=DEADLINE) as page:
                if b"<html" not in page.read().lower():
                    raise Failed("the page of dev is no page")
            alice, bob = (sockets.enter_context(connect(user["url"])) for user in told["users"])
            send(alice, json.dumps({"message": "hello"}))
            for heard in (alice, bob):
                event = json.loads(receive(heard))
                if event.get("type") == "lockgate.position":
                    # The route resumes, and tells a new socket where it begins.
                    event = json.loads(receive(heard))
                if event.get("message") != "hello" or event.get("username") != "alice":
                    raise Failed(f"heard {event}")
        finally:
            # The whole group: a change of the user, as by setpriv, takes back that the program ends with `unshare`.
            os.killpg(process.pid, signal.SIGKILL)
    return time.monotonic() - began


def connect(url):
    """Opens a socket at a ws:// address."""
    parts = urlsplit(url)
    link = socket.create_connection((parts.hostname, parts.port), timeout=DEADLINE)
    key = base64.b64encode(os.urandom(16)).decode()
    link.sendall((f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                  f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = link.recv(1)
        if not byte:
            raise Failed(f"the handshake was cut after {head!r}")
        head += byte
    if b" 101 " not in head.split(b"\r\n")[0]:
        raise Failed(f"the handshake was refused: {head.split(chr(13).encode())[0]!r}")
    return link


def send(link, text):
    """Sends a text frame of at most 125 bytes, masked as a client's must be."""
    data, mask = text.encode(), os.urandom(4)
    link.sendall(struct.pack("!BB", 0x81, 0x80 | len(data)) + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)))


def receive(link):
    """Returns the next text frame; pings are left unanswered."""
    while True:
        first, length = exactly(link, 2)
        if length == 126:
            length = struct.unpack("!H", exactly(link, 2))[0]
        body = exactly(link, length)
        if first & 0x0F == 1:
            return body.decode()
        if first & 0x0F == 8:
            raise Failed(f"closed with {body!r}")


def exactly(link, count):
    data = b""
    while len(data) < count:
        part = link.recv(count - len(data))
        if not part:
            raise Failed("the socket ended")
        data += part
    return data
