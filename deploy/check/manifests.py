"""Renders the manifests that an operator would apply, and checks them with the schemas of Kubernetes."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tools import ROOT, output, program

K8S = ROOT / "k8s"
# The oldest and the newest supported version; k8s/README.md names them too.
VERSIONS = ["1.30", "1.37"]

# Kinds of custom resources. No package has their schemas, so policy.py checks their form.
CUSTOM = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
}

# The overlays, and each component once on the production overlay without its own components.
RENDERED = {
    "overlays/dev": None,
    "overlays/production": None,
    "production with components/hpa": ["hpa"],
    "production with components/keda": ["keda", "monitoring"],
    "production with components/ingress-haproxy": ["ingress-haproxy"],
    "production with components/gateway-api": ["gateway-api"],
    "production with components/redis-cluster": ["redis-cluster"],
}


def kustomize(folder):
    """Returns the documents that `kubectl apply -k FOLDER` would send."""
    done, rendered, told = output(program("kubectl"), "kustomize", folder)
    if not done:
        raise ValueError(f"kubectl kustomize {folder}: {told}")
    return [document for document in yaml.safe_load_all(rendered) if document]


def render(name):
    """Returns the documents of one entry of RENDERED."""
    components = RENDERED[name]
    if components is None:
        return kustomize(K8S / name)
    production = yaml.safe_load((K8S / "overlays/production/kustomization.yaml").read_text())
    production["components"] = [f"../../components/{component}" for component in components]
    if {"hpa", "keda"} & set(components):
        del production["replicas"]  # the autoscaler's
    # Kustomize reads nothing outside the folder that it was given but other kustomizations: a copy beside the real one.
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "k8s"
        shutil.copytree(K8S, copy)
        folder = copy / "overlays/production"
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(production))
        return kustomize(folder)


@cache
def _folder(version):
    """Returns the folder of kubernetes-validate with the strict schemas of one version."""
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    if not folder.is_dir():
        raise ValueError(f"no schemas of Kubernetes {version}: another kubernetes-validate in requirements.txt?")
    return folder


@cache
def _definitions(version):
    return Resource.from_contents(json.loads((_folder(version) / "_definitions.json").read_text()))


@cache
def _validator(version, kind, group, api_version):
    path = _folder(version) / ("-".join(part for part in (kind.lower(), group, api_version) if part) + ".json")
    if not path.exists():
        return None
    schema = json.loads(path.read_text())
    registry = _definitions(version) @ (Resource.from_contents(schema) @ Registry())
    return Draft202012Validator(schema, registry=registry)


def schema_findings(documents, version):
    """Returns every deviation from the strict schemas of one version of Kubernetes; an unknown kind is one."""
    found = []
    for document in documents:
        api, kind = document.get("apiVersion", ""), document.get("kind", "")
        name = f"{kind} {document.get('metadata', {}).get('name')}"
        if (api, kind) in CUSTOM:
            continue
        group, _, api_version = api.rpartition("/")
        validator = _validator(version, kind, group.split(".")[0], api_version)
        if validator is None:
            found.append(f"{name}: Kubernetes {version} has no {api} {kind}")
            continue
        for error in validator.iter_errors(document):
            place = ".".join(str(part) for part in error.absolute_path)
            found.append(f"{name}: {place}: {error.message.splitlines()[0][:200]} (Kubernetes {version})")
    return found
