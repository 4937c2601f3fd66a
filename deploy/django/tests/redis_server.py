"""A redis-server of the tests' own, on a loopback port, ended when they end."""

import atexit
import functools
import socket
import subprocess
import tempfile
import time

import redis
from django.test import override_settings


@functools.cache
def start():
    """Its URL; started at the first call."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.TemporaryDirectory()
    options = {"port": port, "bind": "127.0.0.1", "dir": folder.name, "save": "", "appendonly": "no"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    server = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)

    @atexit.register
    def stop():
        server.terminate()
        server.wait()
        folder.cleanup()

    client, deadline = redis.Redis(port=port), time.monotonic() + 20
    while True:
        try:
            client.ping()
            return f"redis://127.0.0.1:{port}/0"
        except redis.ConnectionError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@functools.cache
def start_cluster():
    """The URL of a cluster of three masters; started at the first call."""
    folder, ports, servers = tempfile.TemporaryDirectory(), [], []
    for node in range(3):
        frees = [socket.socket() for _ in range(2)]
        for free in frees:
            free.bind(("127.0.0.1", 0))
        port, bus = (free.getsockname()[1] for free in frees)
        for free in frees:
            free.close()
        options = {"port": port, "cluster-port": bus, "bind": "127.0.0.1", "dir": folder.name, "save": "", "appendonly": "no"}
        options |= {"cluster-enabled": "yes", "cluster-config-file": f"{node}.conf"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        servers.append(subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL))
        ports.append(port)

    @atexit.register
    def stop():
        for server in servers:
            server.terminate()
            server.wait()
        folder.cleanup()

    deadline = time.monotonic() + 60
    addresses = [f"127.0.0.1:{port}" for port in ports]
    create = ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"]
    while subprocess.run(create, capture_output=True).returncode:
        if time.monotonic() > deadline:
            raise AssertionError("the cluster was not made")
        time.sleep(0.1)
    for port in ports:
        while "cluster_state:ok" not in str(redis.Redis(port=port).execute_command("CLUSTER", "INFO")):
            if time.monotonic() > deadline:
                raise AssertionError("the cluster is not whole")
            time.sleep(0.1)
    return f"redis+cluster://{','.join(addresses)}"


class WithRedis:
    """For test cases: the app speaks to an empty Redis; `redis` is a client, `heard` what was announced."""

    conf = {}

    def setUp(self):
        super().setUp()
        url = start()
        overridden = override_settings(LOCKGATE={"TENANT": "acme", "REDIS_URL": url, **self.conf})
        overridden.enable()
        self.addCleanup(overridden.disable)
        self.redis = redis.Redis.from_url(url)
        self.redis.flushall()
        self.addCleanup(self.redis.close)
        self.control = self.redis.pubsub(ignore_subscribe_messages=True)
        self.control.subscribe("lockgate:acme:control")
        self.control.get_message(timeout=5)
        self.addCleanup(self.control.close)

    def heard(self):
        """The messages so far: what is published before this mark has arrived before it."""
        self.redis.publish("lockgate:acme:control", b"mark")
        messages = []
        while True:
            message = self.control.get_message(timeout=5)
            if message is None:
                raise AssertionError("the mark did not arrive")
            if message["data"] == b"mark":
                return messages
            messages.append(message["data"])
