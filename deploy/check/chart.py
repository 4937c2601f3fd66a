"""Checks the Helm chart: it renders what kustomize renders from k8s/, and refuses typical mistakes in its values.

Both are rendered by the programs that operators use. Objects are compared as data, without the few things that a release adds
(the labels of Helm and a checksum) and without the hash in the names of kustomize's ConfigMaps, which have no labels there.
"""

import copy
import json
import re
import tempfile
import tomllib
from pathlib import Path

import yaml

import manifests
import policy
from tools import ROOT, output, program

CHART = ROOT / "deploy/helm/lockgate"
RULES = CHART / "files/rules.yaml"
RELEASE_LABELS = {"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"}

ACME = (manifests.K8S / "overlays/production/tenants/acme.toml").read_text()
# The values that stand for overlays/production without its components.
PRODUCTION = {
    "namespace": {"create": True},
    "image": {"repository": "registry.example.com/lockgate"},
    "replicas": 3,
    "tenants": {"acme": ACME},
    "settings": {
        "server.client_address": "x-forwarded-for",
        "server.trusted_proxies": '["10.0.0.0/8"]',
        "server.per_address.connections": 2000,
        "server.per_address.handshakes": 200,
        "server.per_address.connects_per_second": 100,
        "server.max_age": "12h",
    },
}
INGRESS = {"enabled": True, "host": "ws.example.com"}
FULL = {**PRODUCTION, "monitoring": {"enabled": True}, "api": {"enabled": True}, "ingress": INGRESS}
HPA = {**PRODUCTION, "autoscaling": {"kind": "hpa"}}
GATEWAY = {"enabled": True, "hostnames": ["ws.example.com"], "parentRefs": [{"name": "public", "namespace": "gateways"}]}

CLUSTER_PORTS = [6379, 5432, 3306, 443, 6380, {"port": 11000, "endPort": 13047}, 10000]

# What kustomize renders, by its name in manifests.py, and the values of the same.
EQUAL = {
    "base": {"namespace": {"create": True}, "image": {"repository": "lockgate"}, "tenantsConfigMap": "lockgate-tenants"},
    "overlays/production": FULL,
    "production with components/hpa": HPA,
    "production with components/keda": {**PRODUCTION, "autoscaling": {"kind": "keda"}, "monitoring": {"enabled": True}},
    "production with components/ingress-haproxy": {**PRODUCTION, "ingress": {**INGRESS, "controller": "haproxy"}},
    "production with components/gateway-api": {**PRODUCTION, "gatewayApi": GATEWAY},
    "production with components/redis-cluster": {**PRODUCTION, "networkPolicy": {"egressPorts": CLUSTER_PORTS}},
}


class Refused(Exception):
    """Helm did not render these values."""


def helm(verb, values, *arguments):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        done, text, told = output(program("helm"), verb, *arguments, "--values", file.name)
    if not done:
        raise Refused(text + told)
    return text


def render(values, version=manifests.VERSIONS[-1], release="lockgate"):
    """Returns the documents that `helm install` would send to a cluster of this version."""
    text = helm("template", values, release, CHART, "--namespace", "lockgate", "--kube-version", f"{version}.0")
    return [document for document in yaml.safe_load_all(text) if document]


def plain(documents):
    """Returns the documents by kind and name, without what differs between two tools that mean the same."""
    text = json.dumps(documents)
    for document in documents:
        if document["kind"] == "ConfigMap":
            name = document["metadata"]["name"]
            # Kustomize appends the hash of the content.
            text = text.replace(f'"{name}"', json.dumps(re.sub(r"-[0-9a-z]{10}$", "", name)))
    found = {}
    for document in json.loads(text):
        _strip(document)
        if document["kind"] == "ConfigMap":
            document["metadata"].pop("labels", None)
        if document["kind"] == "Deployment":
            pod = document["spec"]["template"]
            pod["metadata"].get("annotations", {}).pop("checksum/config", None)
            for container in pod["spec"]["containers"]:
                for key in ("env", "ports"):
                    container[key].sort(key=lambda entry: entry["name"])
            if not pod["metadata"].get("annotations", True):
                del pod["metadata"]["annotations"]
        found[document["kind"], document["metadata"]["name"]] = document
    return found


def _strip(value):
    if isinstance(value, dict):
        for key in ("labels", "matchLabels", "selector"):
            inner = value.get(key)
            if isinstance(inner, dict):
                for label in RELEASE_LABELS & inner.keys():
                    del inner[label]
                if not inner:
                    del value[key]
        for inner in value.values():
            _strip(inner)
    elif isinstance(value, list):
        for inner in value:
            _strip(inner)


def differences(left, right, path=""):
    """Yields each place where two values differ, with what the first and the second have there."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys(), key=str):
            yield from differences(left.get(key), right.get(key), f"{path}.{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, pair in enumerate(zip(left, right)):
            yield from differences(*pair, f"{path}[{index}]")
    elif left != right:
        yield f"{path}: kustomize has {json.dumps(left)[:200]}, the chart {json.dumps(right)[:200]}"


def unlike(name, values):
    """Yields each difference between a rendering of kustomize and the chart with these values."""
    left = plain(manifests.kustomize(manifests.K8S / "base") if name == "base" else manifests.render(name))
    right = plain(render(values))
    if name == "base":  # which names no version
        left["Deployment", "lockgate"]["spec"]["template"]["spec"]["containers"][0]["image"] += f":{version()}"
    for key in sorted(left.keys() | right.keys()):
        for difference in differences(left.get(key), right.get(key)):
            yield f"{name}: {' '.join(key)}{difference}"


def version():
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


def with_value(path, value):
    """Returns the values of the production overlay with one change."""
    values = copy.deepcopy(FULL)
    *tables, last = path
    table = values
    for key in tables:
        table = table.setdefault(key, {})
    table[last] = value
    return values


CONFIG = yaml.safe_load((CHART / "values.yaml").read_text())["config"]

# (what was done, path of the value, the value, words of the refusal or of the finding)
MISTAKES = [
    ("replicas as text", ["replicas"], "3", "at '/replicas': got string, want integer"),
    ("no replica", ["replicas"], 0, "at '/replicas': minimum"),
    ("a misspelt value", ["replica"], 3, "additional properties 'replica' not allowed"),
    ("a misspelt value of a component", ["ingress", "hosts"], ["ws.example.com"], "additional properties 'hosts' not allowed"),
    ("the image latest", ["image", "tag"], "latest", "at '/image/tag': 'not' failed"),
    ("a tag in the repository", ["image", "repository"], "registry.example.com/lockgate:1", "at '/image/repository'"),
    ("no Secret", ["existingSecret"], "", "at '/existingSecret'"),
    ("secrets as values", ["secrets"], {"redis-url": "redis://redis"}, "additional properties 'secrets' not allowed"),
    ("no tenant", ["tenants"], {}, "at '/tenants': minProperties"),
    ("a tenant's name with capitals", ["tenants", "Acme"], ACME, "at '/tenants'"),
    ("a signing key in a tenant", ["tenants", "acme"],
     ACME.replace('{ file = "/run/secrets/lockgate/acme-signing-key" }', '"a-key-of-more-than-thirty-two-bytes"'), "at '/tenants/acme': 'not' failed"),
    ("a password in a URL", ["config"], CONFIG.replace('{ file = "/run/secrets/lockgate/redis-url" }', '"redis://:hunter2@redis/0"'),
     "at '/config': 'not' failed"),
    ("a secret as a setting", ["settings", "redis.url"], "redis://redis/0", "invalid propertyName 'redis.url'"),
    ("a tenant's setting", ["settings", "tenants.acme.token.signing_key"], "x", "invalid propertyName 'tenants.acme.token.signing_key'"),
    ("the drain past its values", ["settings", "server.drain.window"], "90s", "invalid propertyName 'server.drain.window'"),
    ("a drain in words", ["drain", "window"], "60s", "at '/drain/window': got string, want integer"),
    ("a CPU limit", ["resources", "limits"], {"memory": "512Mi", "cpu": "1"}, "at '/resources/limits': 'not' failed"),
    ("an Ingress without a host", ["ingress"], {"enabled": True}, "at '/ingress/host'"),
    ("an Ingress of an unknown controller", ["ingress", "controller"], "other", "at '/ingress"),
    ("an HTTPRoute without a Gateway", ["gatewayApi"], {"enabled": True, "hostnames": ["ws.example.com"]}, "at '/gatewayApi/parentRefs'"),
    ("an autoscaler that leaves one", ["autoscaling"], {"kind": "hpa", "minReplicas": 1}, "at '/autoscaling/minReplicas'"),
    ("an unknown autoscaler", ["autoscaling"], {"kind": "vpa"}, "at '/autoscaling/kind'"),
    ("runbooks without a scheme", ["monitoring", "runbooks"], "wiki.example.com", "at '/monitoring/runbooks'"),
    # No schema knows these; the policy does.
    ("a setting that names no key", ["settings", "server.max_ages"], "1h", "server.max_ages: an unknown key"),
    ("a default, repeated", ["settings", "server.ready_wait"], "30s", "is the default"),
    ("more sockets than the rate closes", ["settings", "server.max_connections"], 40000, "leave faster than drain.rate"),
    ("a shorter window with as many sockets", ["drain", "window"], 30, "leave faster than drain.rate"),
    ("an autoscaler that waits too long", ["autoscaling"], {"kind": "hpa", "connections": 17000}, "too late for new replicas"),
    ("a key that no Secret has", ["tenants", "acme"], ACME.replace("acme-signing-key", "acme-key"), "no Secret has the file"),
    ("a network without Redis", ["networkPolicy", "egressPorts"], [5432], "Redis (6379) cannot be reached"),
    ("a range of ports without an end", ["networkPolicy", "egressPorts"], [6379, 5432, {"port": 11000}], "at '/networkPolicy/egressPorts/2'"),
    ("a range of ports that ends before it begins", ["networkPolicy", "egressPorts"], [6379, 5432, {"port": 13047, "endPort": 11000}],
     "networkPolicy.egressPorts: endPort 11000 is below port 13047"),
    ("a layer that a cluster does not have", ["tenants", "acme"], ACME.replace('prefix = "acme"', 'kind = "pubsub"\nprefix = "acme"'),
     "on a cluster: tenants.acme.layer.kind"),
    ("an admin listener on loopback", ["config"], CONFIG.replace('"0.0.0.0:9000"', '"127.0.0.1:9002"'), "cannot be reached from outside the pod"),
    ("the loss of a probe's port", ["config"], CONFIG.replace("9000", "9005"), "and admin.listen is 9005"),
    ("a tenant that is not TOML", ["tenants", "acme"], "tenants: acme", "cannot read the manifests"),
    ("an Ingress that cuts idle sockets", ["ingress", "annotations"], {"nginx.ingress.kubernetes.io/proxy-read-timeout": "30"},
     "cuts sockets between two pings"),
]


def survivors(judge):
    """Yields the mistakes that neither the schema of the values nor the policy caught."""
    for what, path, value, expected in MISTAKES:
        try:
            found = judge(render(with_value(path, value)))
        except Refused as refusal:
            found = [" ".join(str(refusal).split())]
        if not any(expected in finding for finding in found):
            yield f"{what}: expected {expected!r}, found {found or 'nothing'}"


def names_follow_the_release():
    """Yields names that two releases in one namespace would share, and selectors that match the pods of the other."""
    one, other = (render({**FULL, "namespace": {"create": False}}, release=release) for release in ("lockgate", "blue"))
    for shared in {(d["kind"], d["metadata"]["name"]) for d in one} & {(d["kind"], d["metadata"]["name"]) for d in other}:
        yield f"two releases share the {' '.join(shared)}"
    pods = next(d for d in other if d["kind"] == "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    for document in one:
        spec = document.get("spec", {})
        for selector in (spec.get("selector"), spec.get("podSelector")):
            wanted = (selector or {}).get("matchLabels", selector) or {}
            if document["kind"] in ("Service", "Deployment", "NetworkPolicy", "PodDisruptionBudget") and wanted and wanted.items() <= pods:
                yield f"{document['kind']} {document['metadata']['name']} selects the pods of another release"


def agreement():
    """Yields what stands in the chart and somewhere else, and differs."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if not chart["version"] == chart["appVersion"] == version():
        yield f"Chart.yaml: version {chart['version']} and appVersion {chart['appVersion']}, and Cargo.toml has {version()}"
    if chart["kubeVersion"] != f">={manifests.VERSIONS[0]}.0-0":
        yield f"Chart.yaml: kubeVersion {chart['kubeVersion']}, and the oldest supported version is {manifests.VERSIONS[0]}"
    if yaml.safe_load(RULES.read_text()) != policy.rule_groups():
        yield "files/rules.yaml: differs from deploy/prometheus: deploy/check/run --write-rule"
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    refused = {name for rule in schema["settings"]["propertyNames"]["allOf"] for name in rule.get("not", {}).get("enum", [])}
    for path in policy.secret_keys():
        if path[0] != "tenants" and ".".join(path) not in refused:
            yield f"values.schema.json: settings may hold {'.'.join(path)}, a secret"
    rule = next(d for d in render({**FULL, "monitoring": {"enabled": True, "runbooks": "https://wiki.example.org/r/"}}) if d["kind"] == "PrometheusRule")
    for alert in (r for group in rule["spec"]["groups"] for r in group["rules"] if "alert" in r):
        if alert["annotations"]["runbook_url"] != f"https://wiki.example.org/r/{alert['alert']}.md":
            yield f"monitoring.runbooks: {alert['alert']} points to {alert['annotations']['runbook_url']}"


def findings(judge, say):
    found = []
    try:
        for oldest_or_newest in manifests.VERSIONS:
            helm("lint", FULL, CHART, "--strict", "--kube-version", f"{oldest_or_newest}.0")
            for name, values in EQUAL.items():
                if name != "base":  # without the ConfigMap of tenants
                    found += [f"{name} on {oldest_or_newest}: {finding}" for finding in judge(render(values, oldest_or_newest))]
        found += [difference for name, values in EQUAL.items() for difference in unlike(name, values)]
        # A comparison that finds nothing proves nothing until it was seen to find something.
        seen = list(unlike("overlays/production", with_value(["resources", "limits", "memory"], "1Gi")))
        if len(seen) != 1 or not seen[0].endswith('.limits.memory: kustomize has "512Mi", the chart "1Gi"'):
            found.append(f"the comparison does not see another memory limit: {seen}")
        found += [*names_follow_the_release(), *agreement()]
    except Refused as refusal:
        return [f"helm: {refusal}"]
    survived = list(survivors(judge))
    say(f"{len(EQUAL)} sets of values render what kustomize renders; {len(MISTAKES) - len(survived)} of {len(MISTAKES)} mistakes caught")
    return found + survived
