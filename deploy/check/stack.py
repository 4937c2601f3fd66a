"""The processes of a rehearsal: a Redis with a password, users in SQLite, replicas configured by k8s/, and a proxy.

Everything listens on loopback, and every process that was started here is ended here.
"""

import http.client
import os
import re
import secrets
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jwt
import msgpack
import redis

from manifests import render
from policy import Deployed
from tools import LOCKGATE, ROOT, program

TENANT, HOST, PREFIX, USERS = "acme", "ws.example.com", "acme", 200


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, fact, seconds=20, period=0.02):
    """Waits until a function returns a true value, and returns that value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := fact()):
            return found
        time.sleep(period)
    raise TimeoutError(f"{what}: not within {seconds} s")


class Child:
    """A process whose output goes to a file, and which ends with this one."""

    def __init__(self, name, command, folder, env=None):
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            env=env, cwd=folder)

    def end(self, how=signal.SIGTERM, seconds=10):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


class Replica(Child):
    """A replica of the Deployment's pod template: its configuration, its variables, its probes."""

    def __init__(self, stack, name, ports=None, extra=None):
        self.port, self.admin = ports or (free_port(), free_port())
        self.api = free_port()
        env = {"PATH": os.environ["PATH"], **stack.environment, **(extra or {}),
               "LOCKGATE_SERVER__LISTEN": f"127.0.0.1:{self.port}", "LOCKGATE_ADMIN__LISTEN": f"127.0.0.1:{self.admin}",
               "LOCKGATE_API__LISTEN": f"127.0.0.1:{self.api}"}
        self.started = time.monotonic()
        super().__init__(name, [LOCKGATE, "serve"], stack.folder, env)

    def get(self, path):
        """Returns status and text of a page of the admin listener; status 0 if it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def call(self, key, path, body):
        """Returns the status of a POST to the management API."""
        connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=5)
        try:
            connection.request("POST", path, body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()

    def ready(self):
        wait_until(f"{self.name} is ready", lambda: self.get("/readyz")[0] == 200 or self.alive_or_fail(), 60)

    def alive_or_fail(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}")


class Stack:
    """Redis, users and the pod's configuration, with replicas and a proxy on request."""

    def __init__(self, folder, overlay="overlays/production"):
        self.folder, self.children = Path(folder), []
        self.deployed = Deployed(render(overlay))
        # Secrets that must never appear in a log line, a metric or an answer.
        self.signing_key = f"planted-signing-key-{secrets.token_hex(16)}"
        self.operator_key = f"planted-operator-key-{secrets.token_hex(16)}"
        self.redis_password = f"planted-redis-password-{secrets.token_hex(8)}"
        self.planted = [self.signing_key, self.operator_key, self.redis_password]
        self.redis_port = free_port()
        self._redis()
        self._users()
        self._configuration()

    def _redis(self):
        self.redis_server = self.start("redis", [
            program("redis-server"), "--port", self.redis_port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--requirepass", self.redis_password])
        self.redis = redis.Redis(port=self.redis_port, password=self.redis_password)
        wait_until("redis answers", self._pings)

    def _pings(self):
        try:
            return self.redis.ping()
        except redis.RedisError:
            return False

    def _users(self):
        database = sqlite3.connect(self.folder / "users.sqlite3")
        database.executescript(re.sub(r"INSERT .*", "", (ROOT / "deploy/dev/users.sql").read_text(), flags=re.S))
        database.executemany(
            "INSERT INTO auth_user VALUES (?, '!', NULL, 0, ?, '', '', 0, 1, '2026-01-01 00:00:00', '')",
            [(n, f"user{n}") for n in range(1, USERS + 1)])
        database.commit()
        database.close()

    def _configuration(self):
        """Returns the pod's files and variables, with local folders in place of the cluster's mounts."""
        for path, text in self.deployed.volume_files().items():
            target = Path(f"{self.folder}{path}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(self._moved(text or ""))
            target.chmod(0o600)
        values = {"redis-url": f"redis://:{self.redis_password}@127.0.0.1:{self.redis_port}/0", "operator-key": self.operator_key,
                  "acme-signing-key": self.signing_key, "acme-database-url": f"sqlite://{self.folder}/users.sqlite3?mode=ro"}
        for name, value in values.items():
            (self.folder / "run/secrets/lockgate" / name).write_text(value)
        environment = {e["name"]: self._moved(e.get("value", "")) for e in self.deployed.container()["env"]}
        environment["LOCKGATE_SERVER__TRUSTED_PROXIES"] = '["127.0.0.0/8"]'
        self.environment = environment

    def _moved(self, text):
        return text.replace("/etc/lockgate", f"{self.folder}/etc/lockgate").replace("/run/secrets", f"{self.folder}/run/secrets")

    def start(self, name, command, **options):
        child = Child(name, command, self.folder, **options)
        self.children.append(child)
        return child

    def replica(self, name, ports=None, extra=None):
        replica = Replica(self, name, ports, extra)
        self.children.append(replica)
        return replica

    def token(self, user, **claims):
        now = int(time.time())
        claims = {"token_type": "access", "exp": now + 7200, "iat": now, "jti": secrets.token_hex(16), "user_id": str(user), **claims}
        return jwt.encode(claims, self.signing_key, algorithm="HS256")

    def publish(self, group, event):
        """Publishes an event in the format of channels_redis' pub/sub layer."""
        return self.redis.publish(f"{PREFIX}__group__{group}", msgpack.packb(event))

    def logs(self):
        """Returns the output of all processes so far, by file."""
        return {path.name: path.read_bytes() for path in self.folder.glob("*.log")}

    def end(self):
        for child in reversed(self.children):
            child.end(signal.SIGKILL if isinstance(child, Replica) else signal.SIGTERM)


def haproxy(stack, replicas):
    """deploy/haproxy/haproxy.cfg with the addresses of these replicas."""
    port = free_port()
    text = (ROOT / "deploy/haproxy/haproxy.cfg").read_text()
    servers = "\n".join(f"    server {name} 127.0.0.1:{port_} port {admin}" for name, port_, admin in replicas)
    text, count = re.subn(r"(?m)^    server .*\n(    server .*\n)*", servers + "\n", text)
    assert count == 1, "haproxy.cfg has one block of servers"
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    (stack.folder / "haproxy.cfg").write_text(text)
    log = stack.start("haproxy", [program("haproxy"), "-f", "haproxy.cfg"]).log
    # HAProxy counts a server as up until two checks have failed, so those that start later begin as down.
    away = sum(not _answers(admin) for _, _, admin in replicas)
    wait_until("haproxy has looked at every replica", lambda: log.read_text().count(" is DOWN") >= away)
    return _listens("haproxy", port)


def nginx(stack, replicas):
    """deploy/nginx/nginx.conf with the addresses of these replicas."""
    port = free_port()
    text = (ROOT / "deploy/nginx/nginx.conf").read_text()
    servers = "\n".join(f"        server 127.0.0.1:{port_} max_fails=0;" for _, port_, _ in replicas)
    text, count = re.subn(r"(?m)^        server lockgate.*\n(        server lockgate.*\n)*", servers + "\n", text)
    assert count == 1, "nginx.conf has one block of servers"
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp/nginx", str(stack.folder / "nginx"))
    (stack.folder / "nginx.conf").write_text(text)
    # The workers need access to the private folders.
    stack.start("nginx", [program("nginx"), "-p", stack.folder, "-c", stack.folder / "nginx.conf", "-g", "daemon off; user root;"])
    return _listens("nginx", port)


def _answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def _listens(what, port):
    wait_until(f"{what} listens", lambda: _answers(port))
    return port


@contextmanager
def stack(folder):
    with ExitStack() as ends:
        made = Stack(folder)
        ends.callback(made.end)
        yield made
