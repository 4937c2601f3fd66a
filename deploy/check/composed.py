"""Checks deploy/compose.yaml and its overlay with a Redis Cluster.

Without Docker: files and configuration are read as the containers would read them, and the commands of the overlay make its cluster
of real servers on loopback addresses.
"""

import json
import re
import secrets
import subprocess
import tempfile
import time
import tomllib
from contextlib import ExitStack
from pathlib import Path

import yaml

from tools import ROOT, lockgate, output, program

DEPLOY = ROOT / "deploy"
CONFIG, TENANT = "/etc/lockgate/config/lockgate.toml", "/etc/lockgate/tenants/tenant.toml"
SECRETS = ["demo-signing-key", "operator-key"]
# The network that the overlay's nodes have in Docker.
NETWORK = "172.30.17."


def findings(say):
    base, overlay = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("compose.yaml", "compose/cluster.yaml"))
    # As `docker compose -f … -f …` merges the little that is checked here.
    both = {name: _merged(base["services"].get(name, {}), overlay["services"].get(name, {}))
            for name in base["services"] | overlay["services"]}
    found = [*_files("compose.yaml", base["services"]), *_files("compose/cluster.yaml", both)]
    found += [*_configuration("compose.yaml", base["services"]), *_configuration("compose/cluster.yaml", both),
              *_numbers(base["services"]), *_cluster(both, say)]
    if set(base["secrets"]) != set(SECRETS):
        found.append(f"compose.yaml: secrets that no check knows: {sorted(base['secrets'])}")
    return found


def _merged(service, over):
    merged = {**service, **over, "environment": {**service.get("environment", {}), **over.get("environment", {})}}
    # A mount takes the place of another at the same path.
    merged["volumes"] = list({volume.split(":")[1]: volume for volume in service.get("volumes", []) + over.get("volumes", [])}.values())
    merged["depends_on"] = [*service.get("depends_on", []), *over.get("depends_on", [])]
    return merged


def _files(where, services):
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = (DEPLOY / volume.split(":")[0]).resolve()
            if not source.exists():
                yield f"{where}: {name}: {volume}: there is no {source}"
        if "build" not in service and service["image"].rpartition(":")[2] in ("latest", service["image"]):
            yield f"{where}: {name}: the image {service['image']} may change under its name"
        environment = service.get("environment", {})
        hosts = re.findall(r"[\w-]+(?=:6379)", " ".join(str(environment.get(name, "")) for name in ("LOCKGATE_REDIS__URL", "REDIS_URL")))
        for other in [*service.get("depends_on", []), *hosts]:
            if other not in services:
                yield f"{where}: {name}: needs {other}, which is no service"


def _configuration(where, services):
    """Yields what `lockgate config check` says of a replica's files, with test keys in place of its secrets."""
    replica = services["lockgate-1"]
    with tempfile.TemporaryDirectory() as folder:
        config, env = _replica(replica, Path(folder))
        done, said, told = lockgate("config", "check", "--grace", replica["stop_grace_period"], "--config", config, env=env)
        # A full replica of 20,000 sockets closes 334 per second, which is acceptable on a laptop.
        if not done or "warning: " in told.replace("warning: server.drain:", ""):
            yield f"{where}: {said}{told}"


def _replica(service, folder):
    """Writes the files of a replica below `folder`; returns the path of its configuration, and its environment."""
    mounts = {volume.split(":")[1]: DEPLOY / volume.split(":")[0] for volume in service["volumes"]}
    for path in (CONFIG, TENANT):
        target = Path(f"{folder}{path}")
        target.parent.mkdir(parents=True)
        target.write_text(mounts[path].read_text().replace("/etc/lockgate", f"{folder}/etc/lockgate").replace("/run/secrets", str(folder)))
    for secret in SECRETS:
        (folder / secret).write_text(f"{secret}-0123456789abcdef0123456789abcdef")
        (folder / secret).chmod(0o440)
    env = {name: value for name, value in service["environment"].items() if name != "LOCKGATE_CONFIG"}
    return f"{folder}{CONFIG}", env


def _numbers(services):
    most = tomllib.loads((DEPLOY / "compose/lockgate.toml").read_text())["server"]["max_connections"]
    if services["lockgate-1"]["ulimits"]["nofile"] < most + 256:
        yield "compose.yaml: fewer descriptors than server.max_connections and 256"
    targets = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]["targets"]
    if sorted(target.partition(":")[0] for target in targets) != sorted(n for n in services if n.startswith("lockgate-")):
        yield "prometheus.yml: other targets than compose's replicas"


# ------------------------------------------------------------------ the overlay's cluster, on loopback


def _cluster(services, say):
    """Yields what is wrong with the cluster that the overlay's own commands make, and with its URL of the gateway."""
    nodes = {name: service["networks"]["default"]["ipv4_address"] for name, service in services.items() if "networks" in service}
    # A network of its own, so that two checks on one machine do not meet.
    own = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(254) + 1}."
    addresses = {name: address.replace(NETWORK, own) for name, address in nodes.items()}
    assert addresses and all(address.startswith(own) for address in addresses.values()), nodes

    def local(text):
        """Returns a command of the overlay with loopback addresses in place of names and addresses of Docker's network."""
        text = re.sub(r"\bredis(-[2-6])?(?=:6379| cluster|$)", lambda found: addresses[found[0]], text.replace(NETWORK, own))
        text = re.sub(r'(?<=nodes=").*(?=")', lambda found: " ".join(addresses[name] for name in found[0].split()), text)
        return text.replace("$$", "$").replace("/etc/redis/cluster.conf", str(DEPLOY / "compose/cluster/redis.conf"))

    with tempfile.TemporaryDirectory() as scratch, ExitStack() as ends:
        for name, address in addresses.items():
            (folder := Path(scratch, name)).mkdir()
            words = [local(word) for word in services[name]["command"]]
            server = subprocess.Popen([program(words[0]), *words[1:], "--bind", address, "--bind-source-addr", address, "--dir", folder],
                                      stdout=subprocess.DEVNULL)
            ends.callback(server.wait)
            ends.callback(server.terminate)
            _wait(f"{name} answers", lambda: _answers(server, address))
        shell, flags, script = services["redis-cluster"]["command"]
        # The second time it finds the cluster that it made.
        for time_ in ("first", "second"):
            done, text, told = output(shell, flags, local(script), timeout=90)
            if not done or ("16384 slots covered" in text) != (time_ == "first"):
                yield f"compose/cluster.yaml: redis-cluster, the {time_} time: {text[-1000:]}{told}"
                return
        found = [*_shards(addresses), *_gateway(services, local, Path(scratch))]
    if not found:
        say(f"the overlay's own commands made a cluster of {len(addresses)} nodes, and the gateway was content with it")
    yield from found


def _answers(server, address):
    """Returns whether this server answers. Another one on its port would answer a PING as well."""
    if server.poll() is not None:
        raise RuntimeError(f"redis-server ended with {server.returncode}: is something else on {address}:6379?")
    return f"process_id:{server.pid}\n" in output(program("redis-cli"), "-h", address, "info", "server")[1]


def _shards(addresses):
    def shards():
        told = output(program("redis-cli"), "-h", addresses["redis"], "cluster", "nodes")[1]
        return len(addresses) == told.count(" connected") and told.count("slave ") == 3 and told
    told = _wait("three masters have a replica each", shards)
    masters = [line.split()[3] for line in told.splitlines() if "slave " in line]
    if len(set(masters)) != 3:
        yield f"compose/cluster.yaml: not one replica of each master:\n{told}"
    for name, address in addresses.items():
        # The name that the node announces; here local() has made an address of it.
        if f"{address}:6379@16379,{address} " not in told:
            yield f"compose/cluster.yaml: {name} announces another name than its service's:\n{told}"


def _gateway(services, local, scratch):
    """Yields what `lockgate doctor` finds on the cluster with a replica's configuration. Here is no database and no worker."""
    config, env = _replica(services["lockgate-1"], scratch)
    _, text, told = lockgate("doctor", "--json", "--config", config, env={name: local(value) for name, value in env.items()})
    seen = [finding for finding in json.loads(text)["findings"] if finding["subject"].startswith("redis ")]
    if [finding["verdict"] for finding in seen if finding["check"] == "role"] != ["ok"] * 3:
        yield f"compose/cluster.yaml: lockgate doctor sees no three masters: {text}{told}"
    for finding in seen:
        if finding["verdict"] == "fail":
            yield f"compose/cluster.yaml: lockgate doctor: {finding['subject']}: {finding['check']}: {finding['detail']}"


def _wait(what, fact, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := fact():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what}: not within {seconds} s")
