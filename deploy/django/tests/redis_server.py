"""A redis-server of the tests' own, on a loopback port, ended when they end."""

import atexit
import functools
import signal
import socket
import subprocess
import tempfile
import time

import redis
from django.test import override_settings
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry


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
    """A cluster of three masters for tests that harm no node; started at the first call."""
    cluster = Cluster()
    atexit.register(cluster.stop)
    return cluster


class Cluster:
    """Three masters, and replicas of the first ones. `url` names the masters."""

    def __init__(self, replicas=0, tls=None):
        self._folder, self._tls = tempfile.TemporaryDirectory(), tls
        self.nodes = [Node(self._folder.name, tls) for _ in range(3 + replicas)]
        masters = self.nodes[:3]
        scheme = "rediss+cluster" if tls else "redis+cluster"
        self.url = f"{scheme}://{','.join(f'127.0.0.1:{node.port}' for node in masters)}"
        for epoch, node in enumerate(self.nodes, 1):
            node.run("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            if node is not self.nodes[0]:
                self.nodes[0].run("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
        for n, node in enumerate(masters):
            node.run("CLUSTER", "ADDSLOTSRANGE", n * 16384 // 3, (n + 1) * 16384 // 3 - 1)
        self.wait_until_whole()
        for replica, master in zip(self.nodes[3:], masters):
            replica.run("CLUSTER", "REPLICATE", master.id())
            wait_for(lambda: b"master_link_status:up" in replica.run("INFO", "replication"), "the replica is in step")
            # A replica stands for election when another master knows it.
            known = (replica.id() + b" ", master.id())
            wait_for(lambda: all(self.knows_replica(node, *known) for node in masters), "all know the replica")

    def knows_replica(self, node, replica, master):
        lines = node.run("CLUSTER", "NODES").splitlines()
        return any(line.startswith(replica) and master in line for line in lines)

    def wait_until_whole(self):
        def is_whole(node):
            told = node.run("CLUSTER", "INFO")
            return b"cluster_state:ok" in told and b"cluster_known_nodes:%d\r" % len(self.nodes) in told

        for node in self.nodes:
            wait_for(lambda: is_whole(node), "the cluster is whole")

    def master_of(self, key):
        """The node that has a key, as the first one that answers says."""
        slot = key_slot(key.encode())
        for node in self.nodes:
            if node.is_running:
                for first, last, master, *_ in node.run("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(node for node in self.nodes if node.port == master[1])
        return None

    def stop(self):
        for node in self.nodes:
            node.thaw()
            node.kill()
        self._folder.cleanup()


class Node:
    """A redis-server of a cluster, which notices a lost node after a second."""

    def __init__(self, folder, tls):
        frees = [socket.socket() for _ in range(2)]
        for free in frees:
            free.bind(("127.0.0.1", 0))
        self.port, self.bus = (free.getsockname()[1] for free in frees)
        for free in frees:
            free.close()
        options = {"bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "no", "cluster-port": self.bus}
        options |= {"cluster-enabled": "yes", "cluster-config-file": f"{self.port}.conf", "cluster-node-timeout": 1000}
        options |= {"cluster-require-full-coverage": "no", "repl-diskless-sync-delay": 0, **(tls or {})}
        options |= {"port": 0, "tls-port": self.port, "tls-cluster": "yes"} if tls else {"port": self.port}
        self._words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        login = {"ssl": True, "ssl_ca_certs": tls["tls-ca-cert-file"]} if tls else {}
        self.client = redis.Redis("127.0.0.1", self.port, socket_timeout=5, retry=Retry(NoBackoff(), 1), **login)
        self.start()

    def start(self):
        self._server = subprocess.Popen(["redis-server", *self._words], stdout=subprocess.DEVNULL)
        self.is_running = True
        wait_for(self._answers, "redis-server answers")

    def _answers(self):
        try:
            return self.client.ping()
        except redis.ConnectionError:
            if self._server.poll() is not None:
                raise
            return False

    def id(self):
        return self.run("CLUSTER", "MYID")

    def run(self, *command):
        """Its answer as it is, without the forms that redis-py gives to some."""
        with self.client.client() as client:
            client.connection.send_command(*command)
            return client.connection.read_response()

    def kill(self):
        self._server.kill()
        self._server.wait()
        self.is_running = False

    def freeze(self):
        self._server.send_signal(signal.SIGSTOP)
        self.is_running = False

    def thaw(self):
        self._server.send_signal(signal.SIGCONT)
        self.is_running = True


def wait_for(is_true, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited for {seconds} s in vain: {what}")
        time.sleep(0.02)


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
