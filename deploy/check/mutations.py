"""Typical mistakes in manifests. A schema or the policy must catch each of them with the expected text.

A check that finds nothing proves nothing until it was seen to find something: every mutation is applied to what is rendered
from k8s/, on its own.
"""

import copy

HPA, KEDA = "production with components/hpa", "production with components/keda"
PRODUCTION, GATEWAY = "overlays/production", "production with components/gateway-api"
CLUSTER = "production with components/redis-cluster"


def find(documents, kind, name="lockgate"):
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"].startswith(name))


def gateway(documents):
    return find(documents, "Deployment")["spec"]


def pod(documents):
    return gateway(documents)["template"]["spec"]


def container(documents):
    return pod(documents)["containers"][0]


def config(documents):
    return next(d for d in documents if d["kind"] == "ConfigMap" and "lockgate.toml" in d["data"])["data"]


def tenant(documents):
    return find(documents, "ConfigMap", "lockgate-tenants")["data"]


def edit(table, key, old, new):
    assert old in table[key], old
    table[key] = table[key].replace(old, new)


def env(documents, name, value):
    container(documents)["env"].append({"name": name, "value": value})


# (what was done, in which rendering, how, words of the finding)
MUTATIONS = [
    ("replicas as text", PRODUCTION, lambda d: gateway(d).update(replicas="3"), "is not of type"),
    ("a misspelt field", PRODUCTION, lambda d: gateway(d).update(minReadySecond=5), "minReadySecond"),
    ("an API version that is gone", PRODUCTION,
     lambda d: find(d, "PodDisruptionBudget").update(apiVersion="policy/v1beta1"), "has no policy/v1beta1"),
    ("an unknown kind", PRODUCTION, lambda d: find(d, "Service").update(kind="Servise"), "has no v1 Servise"),
    ("a custom kind that is not on the list", PRODUCTION,
     lambda d: find(d, "ServiceMonitor").update(apiVersion="monitoring.coreos.com/v2"), "a kind that no check knows"),
    ("the selector of another label", PRODUCTION,
     lambda d: gateway(d)["selector"].update(matchLabels={"app": "lockgate"}), "its selector does not match its pods"),
    ("a Service that selects nothing", PRODUCTION,
     lambda d: find(d, "Service").update(spec={**find(d, "Service")["spec"], "selector": {"app": "x"}}), "selects no pod"),
    ("a renamed container port", PRODUCTION,
     lambda d: container(d)["ports"][0].update(name="ws"), "no pod has the port websocket"),
    ("another container port", PRODUCTION,
     lambda d: container(d)["ports"][0].update(containerPort=8080), "server.listen is 0.0.0.0:8000"),
    ("liveness that asks readiness", PRODUCTION,
     lambda d: container(d)["livenessProbe"]["httpGet"].update(path="/readyz"), "livenessProbe asks /readyz"),
    ("readiness that asks liveness", PRODUCTION,
     lambda d: container(d)["readinessProbe"]["httpGet"].update(path="/livez"), "readinessProbe asks /livez"),
    ("a probe of the sockets' port", PRODUCTION,
     lambda d: container(d)["readinessProbe"]["httpGet"].update(port="websocket"), "asks the port websocket"),
    ("no startup probe", PRODUCTION, lambda d: container(d).pop("startupProbe"), "no startupProbe"),
    ("the default grace period", PRODUCTION, lambda d: pod(d).pop("terminationGracePeriodSeconds"), "the grace period is 30 s"),
    ("a longer window, the same grace period", PRODUCTION,
     lambda d: env(d, "LOCKGATE_SERVER__DRAIN__WINDOW", "90s"), "the grace period is 90 s"),
    ("a grace period that the gateway refuses", PRODUCTION,
     lambda d: pod(d).update(terminationGracePeriodSeconds=69), "expected at most the grace period 69s"),
    ("drains that overlap", PRODUCTION, lambda d: gateway(d).update(minReadySeconds=10), "lets two drains"),
    ("the default strategy", PRODUCTION, lambda d: gateway(d).pop("strategy"), "before there is room"),
    ("a rollout that gives up on itself", PRODUCTION,
     lambda d: gateway(d).update(progressDeadlineSeconds=120), "fails a healthy rollout"),
    ("more sockets than the rate closes", PRODUCTION,
     lambda d: edit(config(d), "lockgate.toml", "18000", "40000"), "leave faster than drain.rate"),
    ("a disruption budget that blocks node drains", PRODUCTION,
     lambda d: find(d, "PodDisruptionBudget")["spec"].update(minAvailable=3), "not one replica at a time"),
    ("an address without a bound", PRODUCTION,
     lambda d: env(d, "LOCKGATE_SERVER__PER_ADDRESS__HANDSHAKES", "0"), "one may take every place"),
    ("a bound on the proxy", PRODUCTION,
     lambda d: env(d, "LOCKGATE_SERVER__CLIENT_ADDRESS", "peer"), "bounds the proxy"),
    ("no disruption budget", PRODUCTION, lambda d: d.remove(find(d, "PodDisruptionBudget")), "no PodDisruptionBudget"),
    ("a writable root", PRODUCTION,
     lambda d: container(d)["securityContext"].pop("readOnlyRootFilesystem"), "can be written"),
    ("root", PRODUCTION, lambda d: pod(d)["securityContext"].update(runAsNonRoot=False), "may run as root"),
    ("a capability", PRODUCTION,
     lambda d: container(d)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]), "keeps capabilities"),
    ("a mounted token", PRODUCTION, lambda d: pod(d).update(automountServiceAccountToken=True), "mounts a token"),
    ("a folder of the node", PRODUCTION,
     lambda d: pod(d)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "restricted pods may not have"),
    ("the image :latest", PRODUCTION, lambda d: container(d).update(image="lockgate:latest"), "may change under its name"),
    ("no requests", PRODUCTION, lambda d: container(d)["resources"].pop("requests"), "no requests"),
    ("a CPU limit", PRODUCTION, lambda d: container(d)["resources"]["limits"].update(cpu="1"), "throttles"),
    ("a key that the binary does not know", PRODUCTION,
     lambda d: edit(config(d), "lockgate.toml", "max_connections", "max_conections"), "max_conections"),
    ("a variable that names no key", PRODUCTION, lambda d: env(d, "LOCKGATE_SERVER__MAX_AGES", "1h"), "server.max_ages: an unknown key"),
    ("a default, repeated", PRODUCTION, lambda d: env(d, "LOCKGATE_SERVER__READY_WAIT", "30s"), "is the default"),
    ("a key in the ConfigMap", PRODUCTION,
     lambda d: edit(tenant(d), "acme.toml", '{ file = "/run/secrets/lockgate/acme-signing-key" }',
                    '"a-key-of-more-than-thirty-two-bytes-in-a-configmap"'), "is a secret, written out"),
    ("a secret in an environment variable", PRODUCTION,
     lambda d: container(d)["env"].append({"name": "ACME_KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}),
     "is a secret in an environment variable"),
    ("a Redis password in a variable", PRODUCTION,
     lambda d: env(d, "LOCKGATE_REDIS__URL", "redis://:hunter2@redis/0"), "redis.url is a secret, written out"),
    ("a secret without a source", PRODUCTION,
     lambda d: edit(tenant(d), "acme.toml", "acme-signing-key", "acme-key"), "no Secret has the file"),
    ("secrets for every user of the pod", PRODUCTION,
     lambda d: pod(d)["volumes"][2]["secret"].update(defaultMode=0o444), "every user of the pod can read"),
    ("a ConfigMap that is not there", PRODUCTION, lambda d: d.remove(find(d, "ConfigMap", "lockgate-tenants")), "there is no ConfigMap"),
    ("the admin listener on loopback", PRODUCTION,
     lambda d: edit(config(d), "lockgate.toml", 'listen = "0.0.0.0:9000"', 'listen = "127.0.0.1:9002"'), "cannot be reached from outside the pod"),
    ("metrics open to every peer", PRODUCTION,
     lambda d: find(d, "NetworkPolicy")["spec"]["ingress"][1].pop("from"), "every peer may reach the port admin"),
    ("a NetworkPolicy without Redis", PRODUCTION,
     lambda d: find(d, "NetworkPolicy")["spec"].update(egress=[]), "Redis (6379) cannot be reached"),
    ("a layer that a cluster does not have", PRODUCTION,
     lambda d: edit(tenant(d), "acme.toml", "[tenants.acme.layer]", '[tenants.acme.layer]\nkind = "core"'), "on a cluster: tenants.acme.layer.kind"),
    ("ranges of ports without an end", CLUSTER,
     lambda d: [port.pop("endPort", None) for port in find(d, "NetworkPolicy")["spec"]["egress"][1]["ports"]], "(11000 to 13047) cannot be reached"),
    ("no NetworkPolicy", PRODUCTION, lambda d: d.remove(find(d, "NetworkPolicy")), "no peer may reach the port websocket"),
    ("an Ingress to the metrics", PRODUCTION,
     lambda d: find(d, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"].update(
         name="lockgate-metrics", port={"name": "metrics"}), "leads the public to admin"),
    ("an Ingress that logs tokens", PRODUCTION,
     lambda d: find(d, "Ingress")["metadata"]["annotations"].pop("nginx.ingress.kubernetes.io/enable-access-log"),
     "shows tokens"),
    ("an Ingress that cuts idle sockets", PRODUCTION,
     lambda d: find(d, "Ingress")["metadata"]["annotations"].update({"nginx.ingress.kubernetes.io/proxy-read-timeout": "30"}),
     "cuts sockets between two pings"),
    ("an HTTPRoute with a timeout", GATEWAY,
     lambda d: find(d, "HTTPRoute")["spec"]["rules"][0].update(timeouts={"request": "60s"}), "a request timeout"),
    ("a ServiceMonitor that finds nothing", PRODUCTION,
     lambda d: find(d, "ServiceMonitor")["spec"]["selector"].update(matchLabels={"app": "x"}), "selects 0 Services"),
    ("alerts that drifted from deploy/prometheus", PRODUCTION,
     lambda d: find(d, "PrometheusRule")["spec"]["groups"].pop(), "differs from deploy/prometheus"),
    ("replicas beside an autoscaler", HPA, lambda d: gateway(d).update(replicas=3), "beside an autoscaler"),
    ("an autoscaler that leaves one", HPA,
     lambda d: find(d, "HorizontalPodAutoscaler")["spec"].update(minReplicas=1), "one replica alone"),
    ("an autoscaler that flaps", HPA,
     lambda d: find(d, "HorizontalPodAutoscaler")["spec"]["behavior"]["scaleDown"].update(stabilizationWindowSeconds=60), "flaps"),
    ("an autoscaler that drains in parallel", KEDA,
     lambda d: find(d, "ScaledObject")["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
     ["policies"][0].update(periodSeconds=15), "faster than one per grace period"),
]


def survivors(rendered, judge):
    """Returns the mutations that no check caught, each with its findings. `judge` returns the findings of documents."""
    for what, where, mutate, expected in MUTATIONS:
        documents = copy.deepcopy(rendered[where])
        mutate(documents)
        found = judge(documents)
        if not any(expected in finding for finding in found):
            yield f"{what}: expected {expected!r}, found {found or 'nothing'}"
