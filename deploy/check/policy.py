"""Rules that no schema has: names and numbers that must agree, and things that a pod of Lockgate must never do.

`findings(documents)` looks at what `kubectl apply` would send, and at nothing else. It runs the gateway's own
`config check` on the configuration that the pod would see.
"""

import json
import re
import tempfile
import tomllib
from pathlib import Path

import yaml

from manifests import CUSTOM
from tools import ROOT, lockgate

NAME = "lockgate"
# The time that a pod needs beyond the drain: for the signal, the last log lines and a busy node.
GRACE_MARGIN = 10
NAMESPACED_NOT = {"Namespace"}
SECRETS_EXAMPLE = ROOT / "k8s/secrets.example.yaml"
PROMETHEUS = ROOT / "deploy/prometheus"


def findings(documents):
    """Returns all mistakes as texts."""
    deployed, found = Deployed(documents), []
    for rule in RULES:
        try:
            found.extend(rule(deployed))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as problem:
            found.append(f"{rule.__name__}: cannot read the manifests: {problem!r}")
    return found


class Deployed:
    """The documents, with the lookups that the rules need."""

    def __init__(self, documents):
        self.documents = documents
        self.workloads = self.of("Deployment")
        self.gateway = next((d for d in self.workloads if d["metadata"]["name"] == NAME), None)

    def of(self, kind):
        return [document for document in self.documents if document["kind"] == kind]

    def pods(self, selector):
        """Returns the pod templates that a selector matches."""
        return [w["spec"]["template"] for w in self.workloads
                if selector and selector.items() <= w["spec"]["template"]["metadata"]["labels"].items()]

    def container(self):
        return self.gateway["spec"]["template"]["spec"]["containers"][0]

    def volume_files(self):
        """Returns the files of the gateway's pod: path to text, or to `None` for a secret that is known by name only."""
        files, spec = {}, self.gateway["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for mount in self.container().get("volumeMounts", []):
            volume = volumes.get(mount["name"], {})
            for kind, key, name in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
                if key not in volume:
                    continue
                wanted = volume[key][name]
                for file, text in (self.content(kind, wanted) or {}).items():
                    files[f"{mount['mountPath']}/{file}"] = text
        return files

    def content(self, kind, name):
        """Returns the files of a ConfigMap or Secret, either one of the documents or the one of the example."""
        for document in self.of(kind):
            if document["metadata"]["name"] == name:
                return document.get("data") or document.get("stringData") or {}
        promised = yaml.safe_load(SECRETS_EXAMPLE.read_text())
        if kind == "Secret" and promised["metadata"]["name"] == name:
            return dict.fromkeys(promised["stringData"])
        return None

    def settings(self):
        """Returns the configuration from the pod's files and variables on top of the binary's defaults."""
        done, text, _ = lockgate("config", "default")
        assert done, "lockgate config default"
        merged = tomllib.loads(text)
        merge(merged, self.written())
        return merged

    def written(self):
        """Returns the settings in the manifests alone: the main file with the variables on top."""
        environment = {e["name"]: e.get("value", "") for e in self.container().get("env", [])}
        main = self.volume_files().get(environment.get("LOCKGATE_CONFIG"))
        written = tomllib.loads(main) if main else {}
        for name, value in environment.items():
            if name.startswith("LOCKGATE_") and "__" in name:
                keys = name.removeprefix("LOCKGATE_").lower().split("__")
                table = written
                for key in keys[:-1]:
                    table = table.setdefault(key, {})
                table[keys[-1]] = toml_value(value)
        return written


def toml_value(text):
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def merge(table, over):
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            merge(table[key], value)
        else:
            table[key] = value


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]


def leaves(table, path=()):
    """Yields every value of a table with the keys that lead to it; tables in lists have the list's key."""
    for key, value in table.items():
        inner = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, dict)]
        for one in inner:
            yield from leaves(one, (*path, key))
        if not inner:
            yield (*path, key), value


# ------------------------------------------------------------------ every document


def kinds_and_names(deployed):
    seen = set()
    for document in deployed.documents:
        kind, metadata = document.get("kind"), document.get("metadata", {})
        name = f"{kind} {metadata.get('name')}"
        if kind not in NAMESPACED_NOT and metadata.get("namespace") != "lockgate":
            yield f"{name}: not in the namespace lockgate"
        if name in seen:
            yield f"{name}: twice"
        seen.add(name)
    if deployed.gateway is None:
        yield "no Deployment lockgate"


def pods_are_restricted(deployed):
    for workload in deployed.workloads:
        name, pod = workload["metadata"]["name"], workload["spec"]["template"]["spec"]
        context = pod.get("securityContext", {})
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name}: mounts a token of its service account"
        if pod.get("enableServiceLinks") is not False:
            yield f"{name}: service links fill its environment with LOCKGATE_ variables"
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{name}: may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: no seccomp profile"
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(key):
                yield f"{name}: {key}"
        for volume in pod.get("volumes", []):
            if not {"configMap", "secret", "emptyDir", "projected", "downwardAPI"} & volume.keys():
                yield f"{name}: the volume {volume['name']} is of a kind that restricted pods may not have"
        for container in pod["containers"] + pod.get("initContainers", []):
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{name}: may gain privileges"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{name}: its root file system can be written"
            if own.get("privileged") or own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
                yield f"{name}: keeps capabilities"
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{name}: takes a port of the node"


def images_and_resources(deployed):
    for workload in deployed.workloads:
        for container in workload["spec"]["template"]["spec"]["containers"]:
            name, image = container["name"], container["image"]
            tag = image.rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in image and tag in ("", "latest"):
                yield f"{name}: the image {image} may change under its name"
            resources = container.get("resources", {})
            if not {"cpu", "memory"} <= resources.get("requests", {}).keys():
                yield f"{name}: no requests: it is the first to be evicted"
            if "memory" not in resources.get("limits", {}):
                yield f"{name}: no memory limit, which server.max_queue_bytes is a part of"
            if "cpu" in resources.get("limits", {}):
                yield f"{name}: a CPU limit throttles every socket"


# ------------------------------------------------------------------ names that must meet


def selectors(deployed):
    for workload in deployed.workloads:
        labels = workload["spec"]["template"]["metadata"]["labels"]
        if not workload["spec"]["selector"]["matchLabels"].items() <= labels.items():
            yield f"{workload['metadata']['name']}: its selector does not match its pods"
    for service in deployed.of("Service"):
        name, pods = service["metadata"]["name"], deployed.pods(service["spec"].get("selector"))
        if not pods:
            yield f"Service {name}: selects no pod"
        for port in service["spec"]["ports"]:
            if pods and not has_port(pods[0], port.get("targetPort", port["port"])):
                yield f"Service {name}: no pod has the port {port.get('targetPort')}"
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for document in deployed.of(kind):
            key = "selector" if kind == "PodDisruptionBudget" else "podSelector"
            if not deployed.pods(document["spec"][key].get("matchLabels")):
                yield f"{kind} {document['metadata']['name']}: selects no pod"
    spread = deployed.gateway["spec"]["template"]["spec"].get("topologySpreadConstraints", []) if deployed.gateway else []
    for constraint in spread:
        if not deployed.pods(constraint["labelSelector"]["matchLabels"]):
            yield f"topologySpreadConstraints {constraint['topologyKey']}: selects no pod"
    if not spread:
        yield "lockgate: all replicas may be on one node"


def has_port(pod, port):
    ports = [p for c in pod["spec"]["containers"] for p in c.get("ports", [])]
    return any(port in (p.get("name"), p["containerPort"]) for p in ports)


def probes(deployed):
    container, settings = deployed.container(), deployed.settings()
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    admin = int(settings["admin"]["listen"].rpartition(":")[2])
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        get = container.get(probe, {}).get("httpGet")
        if get is None:
            yield f"lockgate: no {probe}"
            continue
        if get["path"] != path:
            yield f"lockgate: {probe} asks {get['path']}, and not {path}"
        if ports.get(get["port"], get["port"]) != admin:
            yield f"lockgate: {probe} asks the port {get['port']}, and admin.listen is {admin}"
    listens = {"websocket": "server", "admin": "admin", "api": "api"}
    for port, table in listens.items():
        listen = settings.get(table, {}).get("listen")
        if port in ports and (listen is None or int(listen.rpartition(":")[2]) != ports[port]):
            yield f"lockgate: the container port {port} is {ports[port]}, and {table}.listen is {listen}"
        if port in ports and listen and listen.startswith("127."):
            yield f"lockgate: {table}.listen is {listen}, which cannot be reached from outside the pod"
        if listen and not listen.startswith("127.") and port not in ports:
            yield f"lockgate: {table}.listen is {listen}, and the container names no port {port}"


def routes_from_outside(deployed):
    services = {s["metadata"]["name"]: s for s in deployed.of("Service")}

    def backend(owner, service, port):
        known = services.get(service)
        match = known and [p for p in known["spec"]["ports"] if port in (p["name"], p["port"])]
        if not match:
            yield f"{owner}: there is no port {port} of a Service {service}"
        elif match[0].get("targetPort") != "websocket":
            yield f"{owner}: leads the public to {match[0].get('targetPort')}"

    interval = seconds(deployed.settings()["server"]["heartbeat"]["interval"])
    for ingress in deployed.of("Ingress"):
        annotations, owner = ingress["metadata"].get("annotations", {}), f"Ingress {ingress['metadata']['name']}"
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield from backend(owner, service["name"], service["port"].get("name", service["port"].get("number")))
        if ingress["spec"]["ingressClassName"] == "nginx":
            for key in ("proxy-read-timeout", "proxy-send-timeout"):
                if int(annotations.get(f"nginx.ingress.kubernetes.io/{key}", "60")) < 2 * interval:
                    yield f"{owner}: {key} cuts sockets between two pings"
            if annotations.get("nginx.ingress.kubernetes.io/enable-access-log") != "false":
                yield f"{owner}: its access log shows tokens"
        elif annotations.get("haproxy.org/timeout-tunnel") != "1h":
            yield f"{owner}: no timeout-tunnel: sockets are cut"
    for route in deployed.of("HTTPRoute"):
        owner = f"HTTPRoute {route['metadata']['name']}"
        for rule in route["spec"]["rules"]:
            for ref in rule["backendRefs"]:
                yield from backend(owner, ref["name"], ref["port"])
            if rule.get("timeouts", {}).get("request") != "0s":
                yield f"{owner}: a request timeout cuts sockets"


def network(deployed):
    policies = [p for p in deployed.of("NetworkPolicy")]
    production = any(p["metadata"]["name"] == NAME for p in policies) or len(deployed.workloads) == 1
    if not production:
        return  # a laptop's overlay has none
    allowed = {}
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", [{"port": "every port"}]):
                if not has_port(deployed.gateway["spec"]["template"], port["port"]):
                    yield f"NetworkPolicy {policy['metadata']['name']}: no pod has the port {port['port']}"
                allowed.setdefault(port["port"], []).extend(rule.get("from", [None]))
    for port in deployed.container()["ports"]:
        sources = allowed.get(port["name"], [])
        if not sources:
            yield f"NetworkPolicy: no peer may reach the port {port['name']}"
        if None in sources:
            yield f"NetworkPolicy: every peer may reach the port {port['name']}"
    main = next((p for p in policies if p["metadata"]["name"] == NAME), None)
    if main is None or set(main["spec"]["policyTypes"]) != {"Ingress", "Egress"}:
        yield "NetworkPolicy lockgate: does not bound both directions"
        return
    rules = main["spec"].get("egress", [])
    egress = {(p["port"], p.get("endPort", p["port"])) for rule in rules for p in rule.get("ports", [])}
    for port, what in ((53, "DNS"), (6379, "Redis"), (5432, "PostgreSQL")):
        if not any(first <= port <= last for first, last in egress):
            yield f"NetworkPolicy lockgate: {what} ({port}) cannot be reached"
    # The nodes of a managed cluster whose first port is there.
    first, last = 11000, 13047
    if any(port == first for port, _ in egress) and (first, last) not in egress:
        yield f"NetworkPolicy lockgate: nodes of a managed cluster ({first} to {last}) cannot be reached"


# ------------------------------------------------------------------ numbers that must fit


def rollout(deployed):
    spec, settings = deployed.gateway["spec"], deployed.settings()["server"]
    rolling = spec.get("strategy", {}).get("rollingUpdate", {})
    if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
        yield "lockgate: a rollout takes sockets away before there is room for them (maxUnavailable 0, maxSurge 1)"
    pod = spec["template"]["spec"]
    drain = seconds(settings["drain"]["delay"]) + seconds(settings["drain"]["window"]) + 5
    sleep = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec"):
        yield "lockgate: a preStop command, where the image has no shell"
    grace = pod.get("terminationGracePeriodSeconds", 30)
    if grace < drain + sleep + GRACE_MARGIN:
        yield f"lockgate: a drain takes {drain + sleep:g} s and {GRACE_MARGIN} s are margin, the grace period is {grace} s"
    many = spec.get("replicas", 2) > 1
    ready = spec.get("minReadySeconds", 0)
    if many and ready < drain:
        yield f"lockgate: minReadySeconds {ready} lets two drains of {drain:g} s overlap"
    deadline = spec.get("progressDeadlineSeconds", 600)
    if deadline < seconds(settings["ready_wait"]) + ready + grace + 60:
        yield f"lockgate: progressDeadlineSeconds {deadline} fails a healthy rollout"
    most = settings["max_connections"]
    if most == 0:
        yield "lockgate: server.max_connections depends on the node; the autoscaler and the grace period need a number"
    named = settings["client_address"] != "peer"
    for key, bound in settings["per_address"].items():
        if named and not bound:
            yield f"lockgate: clients are known by their address, and one may take every place: server.per_address.{key} is 0"
        if bound and not named:
            yield f"lockgate: server.per_address.{key} bounds the proxy, which is the peer of every client"
    if most > settings["drain"]["rate"] * seconds(settings["drain"]["window"]):
        yield f"lockgate: {most} sockets leave faster than drain.rate"
    startup = pod["containers"][0].get("startupProbe", {})
    if startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3) < 10:
        yield "lockgate: the startup probe gives up too early"
    readiness = pod["containers"][0].get("readinessProbe", {})
    if readiness.get("periodSeconds", 10) * readiness.get("failureThreshold", 3) > seconds(settings["drain"]["delay"]):
        yield "lockgate: drain.delay is over before the readiness probe has noticed"


def disruption(deployed):
    replicas = deployed.gateway["spec"].get("replicas", 2)
    budgets = [b for b in deployed.of("PodDisruptionBudget")]
    if not budgets:
        yield "lockgate: no PodDisruptionBudget: a node upgrade may take every replica at once"
    for budget in budgets:
        spec = budget["spec"]
        if "minAvailable" in spec or spec.get("maxUnavailable") != 1:
            yield f"PodDisruptionBudget: {spec} is not one replica at a time"
    if replicas == 0:
        yield "lockgate: no replica"


def autoscaling(deployed):
    spec = deployed.gateway["spec"]
    grace = spec["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    most = deployed.settings()["server"]["max_connections"]
    scalers = []
    for hpa in deployed.of("HorizontalPodAutoscaler"):
        pods = [m["pods"] for m in hpa["spec"]["metrics"] if m["type"] == "Pods"]
        average = [int(m["target"]["averageValue"]) for m in pods if m["metric"]["name"] == "lockgate_connections"]
        scalers.append((hpa["spec"]["scaleTargetRef"]["name"], hpa["spec"].get("minReplicas", 1), hpa["spec"].get("behavior"), average))
    for scaled in deployed.of("ScaledObject"):
        triggers = [t for t in scaled["spec"]["triggers"] if "lockgate_connections" in t["metadata"].get("query", "")]
        behavior = scaled["spec"].get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior")
        average = [int(t["metadata"]["threshold"]) for t in triggers]
        scalers.append((scaled["spec"]["scaleTargetRef"]["name"], scaled["spec"].get("minReplicaCount", 0), behavior, average))
    if len(scalers) > 1:
        yield "two autoscalers pull at one Deployment"
    for target, least, behavior, average in scalers:
        if target != NAME:
            yield f"the autoscaler's target {target} is not there"
        if "replicas" in spec:
            yield "lockgate: `replicas` beside an autoscaler is reset with every apply"
        if least < 2:
            yield "the autoscaler may leave one replica alone"
        if not average:
            yield "the autoscaler does not look at lockgate_connections: idle sockets cost no CPU"
        elif average[0] > 0.8 * most:
            yield f"the autoscaler waits for {average[0]} of {most} sockets: too late for new replicas to help"
        down = (behavior or {}).get("scaleDown", {})
        policies = down.get("policies", [])
        if not policies or any(p["value"] != 1 or p["periodSeconds"] < grace for p in policies):
            yield f"the autoscaler takes replicas faster than one per grace period ({grace} s)"
        if down.get("stabilizationWindowSeconds", 300) < 600:
            yield "the autoscaler flaps: every scale-down closes sockets"


# ------------------------------------------------------------------ configuration and secrets


def references(deployed):
    pod = deployed.gateway["spec"]["template"]["spec"]
    for volume in pod.get("volumes", []):
        for kind, key, name in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
            if key in volume and deployed.content(kind, volume[key][name]) is None:
                yield f"lockgate: there is no {kind} {volume[key][name]}"
            if key == "secret" and "secret" in volume and volume["secret"].get("defaultMode", 0o644) & 0o007:
                yield f"lockgate: every user of the pod can read the files of {volume['secret']['secretName']}"
    if not pod.get("securityContext", {}).get("fsGroup"):
        yield "lockgate: without fsGroup it cannot read its secrets"
    files = deployed.volume_files()
    for path in re.findall(r'file\s*=\s*"([^"]+)"', " ".join(t for t in [*files.values(), *variables(deployed)] if t)):
        if path not in files:
            yield f"lockgate: no Secret has the file {path}"


def variables(deployed):
    return [str(e.get("value", "")) for e in deployed.container().get("env", [])]


def secret_keys():
    """Returns the path of every key with a secret, from the gateway's reference; a tenant's name is `*`."""
    done, text, _ = lockgate("config", "reference")
    assert done, "lockgate config reference"
    table, found = (), set()
    for line in text.splitlines():
        if heading := re.match(r"## `\[+([\w.]+)\]+`", line):
            table = tuple(heading[1].replace("NAME", "*").split("."))
        elif (row := re.match(r"\| `(\w+)` \| ([^|]*) \|", line)) and "a secret" in row[2]:
            found.add((*table, row[1]))
    assert len(found) > 5, "no secret in `lockgate config reference`: has its form changed?"
    return found


def is_secret(path, secret):
    return (("tenants", "*", *path[2:]) if path[0] == "tenants" else path) in secret


def no_secret_in_sight(deployed):
    secret = secret_keys()
    for workload in deployed.workloads:
        for container in workload["spec"]["template"]["spec"]["containers"]:
            for entry in container.get("env", []):
                if "secretKeyRef" in entry.get("valueFrom", {}):
                    yield f"{container['name']}: {entry['name']} is a secret in an environment variable"
            if any("secretRef" in entry for entry in container.get("envFrom", [])):
                yield f"{container['name']}: a Secret as environment variables"
    tables = [(f"ConfigMap {d['metadata']['name']} {file}", text) for d in deployed.of("ConfigMap")
              for file, text in (d.get("data") or {}).items() if file.endswith(".toml")]
    written = [(where, leaf) for where, text in tables for leaf in leaves(tomllib.loads(text))]
    written += [("the environment", leaf) for leaf in leaves(environment_table(deployed))]
    for where, (path, value) in written:
        # { file = … } and { env = … } are tables: their leaves are called so.
        values = value if isinstance(value, list) else [value]
        if is_secret(path, secret) and any(isinstance(v, str) for v in values):
            yield f"{where}: {'.'.join(path)} is a secret, written out"
        if path[-1] == "env" and is_secret(path[:-1], secret):
            yield f"{where}: {'.'.join(path)}: a secret in an environment variable"


def environment_table(deployed):
    table = {}
    for entry in deployed.container().get("env", []):
        if entry["name"].startswith("LOCKGATE_") and "__" in entry["name"]:
            *path, last = entry["name"].removeprefix("LOCKGATE_").lower().split("__")
            inner = table
            for key in path:
                inner = inner.setdefault(key, {})
            inner[last] = toml_value(entry.get("value", ""))
    return table


def no_default_repeated(deployed):
    done, text, _ = lockgate("config", "default")
    defaults = dict(leaves(tomllib.loads(text)))
    for path, value in leaves(deployed.written()):
        if path in defaults and defaults[path] == value:
            yield f"lockgate: {'.'.join(path)} = {value!r} is the default: write only what differs"


def configuration(deployed):
    """Returns the verdict of `lockgate config check` on the pod's files, with this grace period, on one Redis and on a cluster."""
    yield from verdict(deployed, "redis://redis.invalid:6379/0")
    # Nothing but the Secret says that it is a cluster.
    for finding in verdict(deployed, "rediss+cluster://redis.invalid:6379"):
        yield finding.replace("lockgate config check", "lockgate config check on a cluster", 1)


def verdict(deployed, redis):
    grace = deployed.gateway["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    with tempfile.TemporaryDirectory() as scratch:
        files = deployed.volume_files()
        folders = sorted({str(Path(path).parent) for path in files}, key=len, reverse=True)

        def moved(text):
            for folder in folders:
                text = text.replace(folder, scratch + folder)
            return text

        for path, text in files.items():
            target = Path(scratch + path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(moved(text) if path.endswith(".toml") else dummy(target.name, redis))
            target.chmod(0o440)
        env = {e["name"]: moved(e.get("value", "")) for e in deployed.container().get("env", [])}
        done, answer, told = lockgate("config", "check", "--json", "--grace", f"{grace}s", env=env)
        try:
            answer = json.loads(answer)
        except ValueError:
            yield f"lockgate config check: {told or answer}"
            return
        for entry in answer["mistakes"]:
            yield f"lockgate config check: {entry['key']}: {entry.get('detail') or entry['found']}".replace(scratch, "")
        for entry in answer["warnings"]:
            yield f"lockgate config check warns: {entry['key']}: {entry['text']}".replace(scratch, "")


def dummy(name, redis):
    """Returns a sample with the form of the secret in this file; `redis` is that of a Redis."""
    if "redis" in name:
        return redis
    if "database" in name:
        return "postgres://lockgate@database.invalid/lockgate"
    return f"{name}-0123456789abcdef0123456789abcdef"


# ------------------------------------------------------------------ custom kinds, by hand


def monitoring(deployed):
    services = deployed.of("Service")
    for monitor in deployed.of("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        chosen = [s for s in services if wanted <= s["metadata"]["labels"].items()]
        if len(chosen) != 1:
            yield f"ServiceMonitor: selects {len(chosen)} Services: every replica is scraped once, or not"
        for endpoint in monitor["spec"]["endpoints"]:
            port = [p for s in chosen for p in s["spec"]["ports"] if p["name"] == endpoint["port"]]
            if not port or port[0].get("targetPort") != "admin":
                yield f"ServiceMonitor: the port {endpoint['port']} is not the admin listener's"
            if endpoint.get("path", "/metrics") != "/metrics":
                yield f"ServiceMonitor: metrics are not at {endpoint['path']}"
        if monitor["spec"].get("jobLabel") != "app.kubernetes.io/name":
            yield "ServiceMonitor: the rules want job=\"lockgate\""
        if not all(s["spec"].get("publishNotReadyAddresses") for s in chosen):
            yield "ServiceMonitor: draining replicas vanish from the dashboards"
    for rule in deployed.of("PrometheusRule"):
        if rule["spec"] != rule_groups():
            yield "PrometheusRule: differs from deploy/prometheus: deploy/check/run --write-rule"


def rule_groups():
    """Returns the rules and alerts of deploy/prometheus as one `spec`."""
    files = [PROMETHEUS / "rules.yaml", PROMETHEUS / "alerts.yaml"]
    return {"groups": [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]}


def custom_kinds_are_few(deployed):
    for document in deployed.documents:
        if "." in document["apiVersion"].partition("/")[0] and not document["apiVersion"].partition("/")[0].endswith(".k8s.io"):
            if (document["apiVersion"], document["kind"]) not in CUSTOM:
                yield f"{document['kind']}: a kind that no check knows"


RULES = [
    kinds_and_names, pods_are_restricted, images_and_resources, selectors, probes, routes_from_outside, network, rollout,
    disruption, autoscaling, references, no_secret_in_sight, no_default_repeated, configuration, monitoring,
    custom_kinds_are_few,
]
