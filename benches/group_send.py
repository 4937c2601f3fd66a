"""What one group_send costs a Django back end, by the number of sockets in the group: with sockets that Lockgate holds, and
with Channels' own consumers.

    tests/run deps
    cargo build --release
    target/venv/bin/python benches/group_send.py target/release/lockgate

The sender is the real channels_redis. Whoever receives is stopped (SIGSTOP) while it sends, so that only the sender's
commands are counted and timed; Lockgate has to deliver everything to every socket afterwards. Needs redis-server. Prints a
table; CPU is that of the sender and of Redis together.
"""

import argparse
import asyncio
import atexit
import gc
import json
import os
import resource
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

import jwt
import redis
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

SENDS = 10
ROUNDS = 5
GROUP = "chat_bench"
KEY = "a signing key for a benchmark, which protects nothing"
LAYERS = {"core": RedisChannelLayer, "pubsub": RedisPubSubChannelLayer}
EVENT = {"type": "chat.message", "message": "m" * 180}


def layer_of(kind, url):
    # Nothing may be dropped while the receiver is stopped, nor expire while it catches up.
    more = {"capacity": 1_000_000, "expiry": 3600} if kind == "core" else {}
    return LAYERS[kind](hosts=[{"address": url, "socket_timeout": None}], prefix="bench", **more)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments, **options):
    """A process that ends with this one, also where this one fails."""
    process = subprocess.Popen(arguments, **options)
    atexit.register(process.kill)
    return process


class Redis:
    def __init__(self, folder):
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}"
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        # A stopped subscriber must not be cut off.
        arguments += ["--client-output-buffer-limit", "pubsub 0 0 0"]
        self.process = start(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        self.client = redis.Redis.from_url(self.url)
        wait_for(lambda: self.ping(), "redis-server")

    def ping(self):
        try:
            return self.client.ping()
        except redis.exceptions.ConnectionError:
            return False

    def commands(self):
        """Calls so far by command, but for those of this measurement."""
        stats = self.client.info("commandstats")
        return sum(stat["calls"] for name, stat in stats.items() if name not in ("cmdstat_info", "cmdstat_client|setname"))

    def cpu(self):
        used = self.client.info("cpu")
        return used["used_cpu_user"] + used["used_cpu_sys"]


def wait_for(condition, what, limit=60):
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {limit} s")
        time.sleep(0.05)


class Consumers:
    """Channels' side: as many channels in the group as there would be consumers, in a process of their own."""

    def __init__(self, kind, url, count):
        arguments = [sys.executable, "-B", __file__, "--consumers", kind, url, str(count)]
        self.process = start(arguments, stdout=subprocess.PIPE, text=True)
        self.expect("ready")

    def expect(self, word):
        line = self.process.stdout.readline().strip()
        if line != word:
            sys.exit(f"the consumers said {line!r} instead of {word!r}")

    async def finish(self):
        """What consumers make of it is Channels' own matter, and takes minutes with 10,000 of them."""
        self.process.kill()
        self.process.wait()


async def consume(kind, url, count):
    layer = layer_of(kind, url)
    channels = [await layer.new_channel() for _ in range(count)]
    for channel in channels:
        await layer.group_add(GROUP, channel)

    print("ready", flush=True)
    await asyncio.Event().wait()


class Sockets:
    """Lockgate's side: real sockets, which count the frames that they get."""

    def __init__(self, binary, folder, kind, url, count):
        database = f"{folder}/users.sqlite3"
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, is_active BOOL)")
            connection.execute("INSERT OR IGNORE INTO users VALUES (1, 1)")
        config = f"{folder}/lockgate.toml"
        ports = [free_port(), free_port()]
        more = "capacity = 1000000\nexpiry = \"1h\"" if kind == "core" else ""
        with open(config, "w") as file:
            file.write(f"""
                server = {{ listen = "127.0.0.1:{ports[0]}", heartbeat = {{ interval = "1h" }} }}
                admin = {{ listen = "127.0.0.1:{ports[1]}" }}
                redis = {{ url = "{url}" }}
                log = {{ level = "error" }}
                [tenants.bench]
                token = {{ algorithm = "HS256", signing_key = "{KEY}" }}
                users = {{ database = "sqlite://{database}", query = "SELECT id, is_active FROM users WHERE id IN (:user_ids)" }}
                [tenants.bench.layer]
                kind = "{kind}"
                prefix = "bench"
                {more}
                [[tenants.bench.routes]]
                path = "ws/"
                groups = ["{GROUP}"]
            """)
        self.process = start([binary, "serve", "--config", config], stdout=sys.stderr)
        self.port, self.count = ports[0], count
        wait_for(self.is_up, "lockgate serve")

    def is_up(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    async def open(self):
        now = int(time.time())
        claims = {"token_type": "access", "exp": now + 3600, "iat": now, "jti": "a", "user_id": "1"}
        token = jwt.encode(claims, KEY, "HS256")
        request = (
            f"GET /ws/?token={token} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        at_once = asyncio.Semaphore(50)

        async def connect():
            async with at_once:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(request.encode())
                head = await reader.readuntil(b"\r\n\r\n")
                if b" 101 " not in head:
                    sys.exit(f"a handshake was refused: {head}")
                return reader, writer

        self.streams = await asyncio.gather(*(connect() for _ in range(self.count)))

    async def finish(self):
        body = json.dumps({"message": EVENT["message"]}, separators=(",", ":")).encode()
        # A text frame with a 16-bit length.
        frame = bytes([0x81, 126]) + len(body).to_bytes(2, "big") + body

        async def read(reader):
            for _ in range(SENDS * ROUNDS):
                while (head := await reader.readexactly(2))[0] == 0x89:
                    # A ping.
                    await reader.readexactly(head[1])
                got = head + await reader.readexactly(len(frame) - 2)
                if got != frame:
                    sys.exit(f"a socket got another frame than the event's: {got[:40]}")

        await asyncio.wait_for(asyncio.gather(*(read(reader) for reader, _ in self.streams)), 120)
        for _, writer in self.streams:
            writer.close()
        self.process.terminate()
        self.process.wait()


async def measure(server, kind, receiver):
    """Median of each: commands, milliseconds, and milliseconds of CPU for one group_send."""
    layer = layer_of(kind, server.url)
    # The sender shares its process with the clients of all sockets: the collector need not look at them again and again.
    gc.collect()
    gc.freeze()
    results = []
    # Connections are made, and scripts are known.
    await layer.group_send("nobody", EVENT)
    for _ in range(ROUNDS):
        receiver.process.send_signal(signal.SIGSTOP)
        commands, cpu = server.commands(), server.cpu() + time.process_time()
        started = time.perf_counter()
        for _ in range(SENDS):
            await layer.group_send(GROUP, EVENT)
        took = time.perf_counter() - started
        cpu, commands = server.cpu() + time.process_time() - cpu, server.commands() - commands
        receiver.process.send_signal(signal.SIGCONT)
        results.append((commands / SENDS, took * 1000 / SENDS, cpu * 1000 / SENDS))
        await asyncio.sleep(0.3)
    return [statistics.median(column) for column in zip(*results)]


async def main(binary, counts):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("| layer | sockets | Channels: commands | ms | ms CPU | Lockgate: commands | ms | ms CPU |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in LAYERS:
        for count in counts:
            cells = [kind, f"{count:,}"]
            for side in ("channels", "lockgate"):
                with tempfile.TemporaryDirectory() as folder:
                    server = Redis(folder)
                    if side == "channels":
                        receiver = Consumers(kind, server.url, count)
                    else:
                        receiver = Sockets(binary, folder, kind, server.url, count)
                        await receiver.open()
                    figures = await measure(server, kind, receiver)
                    await receiver.finish()
                    server.process.terminate()
                    server.process.wait()
                cells += [f"{figures[0]:.1f}", f"{figures[1]:.2f}", f"{figures[2]:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", help="lockgate, built for release")
    parser.add_argument("--sockets", default="10,1000,10000", help="sizes of the group (10,1000,10000)")
    parser.add_argument("--consumers", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consumers:
        kind, url, count = arguments.consumers
        asyncio.run(consume(kind, url, int(count)))
    elif arguments.binary:
        asyncio.run(main(arguments.binary, [int(count) for count in arguments.sockets.split(",")]))
    else:
        parser.error("which lockgate?")
