"""Evaluates every panel and every rule on a real Prometheus that scrapes two live replicas under load and faults.

Prometheus answers a misspelt metric with an empty result and no error: so an empty result is a failure here, but for panels
marked `"expect": "empty-when-healthy"`.
"""

import asyncio
import base64
import http.client
import json
import math
import re
import secrets
import signal
import socket
import struct
import tempfile
import time
import urllib.parse
from pathlib import Path

import stack as stacks
import swarm
from promql import FOREIGN, RULE_FILES, family, panels, plain, rules, selectors
from tools import ROOT, output, program

# What this load does not bring about: a defect, a wrong grant, a proxy that sends to draining replicas, a client that does not
# read, a Redis that is deaf (tests/gateway and tests/parts/channel_layer do). The gateway must know the family; a value need not be there.
NOT_IN_THIS_LOAD = re.compile(r'reason="(internal_error|too_slow)"|kind=~"auth\|permission"|result="draining"|lockgate_canary_missed_total|lockgate_token_refreshes_total')
CHAT = "/ws/chat/load/"


class Prometheus:
    def __init__(self, stack, replicas):
        self.port = stacks.free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"},
            "rule_files": [str(file) for file in RULE_FILES],
            "scrape_configs": [{"job_name": "lockgate", "static_configs": [
                {"targets": [f"127.0.0.1:{replica.admin}" for replica in replicas]}]}],
        }
        (stack.folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        stack.start("prometheus", [program("prometheus"), "--config.file=prometheus.yml", f"--storage.tsdb.path={stack.folder}/tsdb",
                                   f"--web.listen-address=127.0.0.1:{self.port}"])
        self.began = time.time()
        stacks.wait_until("Prometheus is ready", lambda: self.get("/-/ready")[0] == 200)

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def series(self, expression):
        """Returns the series with a finite value since the start. Raises Prometheus' error if it is not an expression."""
        query = urllib.parse.urlencode({"query": expression, "start": self.began, "end": time.time(), "step": "1s"})
        _, body = self.get(f"/api/v1/query_range?{query}")
        answer = json.loads(body)
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return sum(any(math.isfinite(float(value)) for _, value in series["values"]) for series in answer["data"]["result"])


async def load(stack, replicas):
    """Makes load, refusals and faults, so that every family changes."""
    stop, opened = asyncio.Event(), []
    people = [swarm.Client(replicas[n % 2].port, stacks.HOST, CHAT, stack.token(1 + n), lambda: opened.append(n)) for n in range(40)]
    jti = secrets.token_hex(16)
    people.append(swarm.Client(replicas[0].port, stacks.HOST, CHAT, stack.token(50, jti=jti), lambda: opened.append(jti)))
    tasks = [asyncio.ensure_future(person.run(stop)) for person in people]
    await until("all are open", lambda: len(opened) >= len(people))

    async def events(seconds, rate):
        began, n = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            while n < passed * rate:
                stack.publish("chat_load", {"type": "x", "n": n})
                n += 1
            await asyncio.sleep(0.02)

    await events(4, 100)
    stack.redis.publish(f"{stacks.PREFIX}__group__chat_load", b"\xc1")   # not an event
    # Twice, some scrapes apart, because a counter that appears with its first value has not risen yet.
    for _ in range(2):
        for replica in replicas:
            chat(replica, stack.token(1), [b'{"n": 1}'] * 5)
            chat(replica, stack.token(2), [b'{"n": 2}'] * 200)          # over messages_per_second
            chat(replica, "no-token-at-all", [])
            chat(replica, stack.token(99999), [])
            chat(replica, stack.token(3), [], cut=True)                 # 1006
        await events(3, 100)
    # Newer binaries count these calls; older ones answer 404.
    revocation = json.dumps({"jti": jti, "exp": int(time.time()) + 7200})
    status = await asyncio.to_thread(replicas[0].call, stack.operator_key, f"/v1/tenants/{stacks.TENANT}/revocations", revocation)
    assert status in (200, 404), f"a revocation is answered with {status}"
    replicas[0].process.send_signal(signal.SIGHUP)
    # Redis stops: handshakes get 503, links are made again, gaps are counted.
    stack.redis_server.end(signal.SIGKILL)
    await until("the loss is noticed", lambda: all('lockgate_dependency_up{dependency="redis"' in (page := r.get("/metrics")[1])
                                                    and re.search(r'lockgate_dependency_up\{dependency="redis"[^}]*\} 0', page)
                                                    for r in replicas))
    for round_ in range(2):
        for replica in replicas:
            for user in range(120 + 10 * round_, 130 + 10 * round_):
                chat(replica, stack.token(user), [])
        await asyncio.sleep(2)    # two scrapes see it
    stack._redis()
    await until("it is back", lambda: all(re.search(r'lockgate_dependency_up\{dependency="redis"[^}]*\} 1', r.get("/metrics")[1])
                                          for r in replicas), seconds=30)
    await events(3, 100)
    replicas[1].process.send_signal(signal.SIGTERM)
    await asyncio.sleep(9)    # delay of 5 s, then sockets close; still scraped meanwhile
    stop.set()
    await asyncio.gather(*tasks)


def chat(replica, token, texts, cut=False):
    """Opens a socket, sends these texts and closes it."""
    person = swarm.Client(replica.port, stacks.HOST, CHAT, token, None)
    with socket.create_connection(("127.0.0.1", replica.port), 5) as connection:
        connection.settimeout(5)
        connection.sendall(person.request)
        connection.recv(4096)
        for text in texts:
            connection.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
        if cut:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        # Reads until the end after the close frame, because closing with unread bytes would reset the connection.
        try:
            connection.sendall(bytes([0x88, 0x80]) + bytes(4))
            while connection.recv(65536):
                pass
        except ConnectionError:
            pass


async def until(what, fact, seconds=20):
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        await asyncio.sleep(0.1)


def add_tenant_with_workers(stack):
    """Adds a copy of the production tenant that has workers and histories: some families exist for such tenants alone."""
    tenants = stack.folder / "etc/lockgate/tenants"
    text = (tenants / "acme.toml").read_text()
    for name, value in {"tenants.acme": "tenants.work", "ws.example.com": "work.example.com", 'prefix = "acme"': 'prefix = "work"\nkind = "core"'}.items():
        assert name in text, f"{name} in acme.toml"
        text = text.replace(name, value)
    (tenants / "work.toml").write_text(text + """
[[tenants.work.routes]]
path     = "ws/jobs/"
consumer = { kind = "worker", channel = "jobs" }

[[tenants.work.groups]]
name    = "chat_<slug:room>"
history = { size = 100 }
""")


def add_registry(stack):
    """Gives the replicas a registry of tenants, which has metrics of its own."""
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    stack.planted.append(key)
    stack.environment |= {"LOCKGATE_REGISTRY__DATABASE": f"sqlite://{stack.folder}/registry.sqlite3?mode=rwc",
                          "LOCKGATE_REGISTRY__KEY": key, "LOCKGATE_REGISTRY__MIGRATE": "true"}


def findings(say):
    """Returns everything that should have had data and had none."""
    with tempfile.TemporaryDirectory(prefix="lockgate-live-") as folder, stacks.stack(Path(folder)) as stack:
        add_tenant_with_workers(stack)
        add_registry(stack)
        replicas = [stack.replica(f"replica-{n}") for n in range(2)]
        for replica in replicas:
            replica.ready()
        prometheus = Prometheus(stack, replicas)
        asyncio.run(load(stack, replicas))
        scrape = replicas[0].get("/metrics")[1]
        exposed = set(re.findall(r"^# TYPE (\S+)", scrape, re.M))
        say(f"{len(exposed)} families in a scrape, {len(list(panels()))} panels, {len(list(rules()))} rules")
        found = [*_unknown(), *_panels(prometheus), *_rules(prometheus)]
        done, text, told = output(program("promtool"), "check", "metrics", input=scrape)
        if not done or told.strip() or text.strip():
            found.append(f"promtool check metrics: {text} {told}")
        for name, log in {**stack.logs(), "a scrape": scrape.encode()}.items():
            found += [f"a planted secret stands in {name}" for secret in stack.planted if secret.encode() in log]
        return found


def described():
    """Returns the families that the gateway describes."""
    source = (ROOT / "src/metrics/families.rs").read_text()
    return set(re.findall(r'^ +[A-Z_]+: \w+ = "(\w+)"', source, re.MULTILINE))


def _unknown():
    asked = {family(s) for _, _, queries, _ in panels() for q in queries for s in selectors(plain(q))}
    asked |= {family(s) for _, rule in rules() for s in selectors(rule["expr"])}
    recorded = {name for name, _ in rules()}
    for name in sorted(asked - recorded - described()):
        if not FOREIGN.fullmatch(name):
            yield f"{name}: asked for, and no metric of the gateway"
    for name in sorted(described() - asked):
        yield f"{name}: in no panel and no rule"


def _panels(prometheus):
    for board, title, queries, expect in panels():
        for query in map(plain, queries):
            try:
                if not prometheus.series(query) and expect != "empty-when-healthy":
                    yield f"{board}: {title}: no data: {query}"
            except ValueError as error:
                yield f"{board}: {title}: {error}: {query}"


def _rules(prometheus):
    for name, rule in rules():
        try:
            if "record" in rule and not prometheus.series(name):
                yield f"{name}: records nothing"
            prometheus.series(rule["expr"])
            for selector in selectors(rule["expr"]):
                if NOT_IN_THIS_LOAD.search(selector):
                    continue   # _unknown has looked whether the family exists
                if not prometheus.series(selector):
                    yield f"{name}: {selector} has no data"
        except ValueError as error:
            yield f"{name}: {error}"
