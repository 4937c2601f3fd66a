"""Packs the Helm chart, with the repository's address and the image's name where there are any, and looks at the result."""

import os
import re
import shutil

from project import FILES, Failed, ROOT, TARGET, VERSION, WORK, address, program, run

CHART = ROOT / "deploy/helm/lockgate"
MADE = FILES / f"lockgate-chart-{VERSION}.tgz"
TENANT = "tenants.acme=[tenants.acme]"


def helm(*arguments):
    own = TARGET / "deploy/bin/helm"
    return run(own if own.exists() else program("helm", "helm, or run deploy/check/run deps"), *arguments)


def runbooks():
    """Returns the address of this version's runbooks, or None."""
    return address() and f"{address()}/blob/v{VERSION}/deploy/runbooks"


def image():
    """Returns the image's name with its registry, which only a build that publishes it knows (LOCKGATE_IMAGE), or None."""
    return os.environ.get("LOCKGATE_IMAGE") or None


def package():
    """Returns the packed chart. Its alerts then link to the runbooks of this version, its page to the sources, its pods to the image."""
    folder = WORK / "chart" / "lockgate"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHART, folder)
    if address():
        about = folder / "Chart.yaml"
        about.write_text(f"{about.read_text()}home: {address()}\nsources: [{address()}]\n")
    values = folder / "values.yaml"
    text = values.read_text()
    for old, new in (('  runbooks: ""  ', runbooks() and f"  runbooks: {runbooks()}  "), ("  repository: lockgate  ", image() and f"  repository: {image()}  ")):
        if old not in text:
            raise Failed(f"values.yaml has no line {old!r}")
        text = text.replace(old, new or old)
    values.write_text(text)
    helm("package", folder, "--destination", WORK / "chart")
    shutil.move(WORK / "chart" / f"lockgate-{VERSION}.tgz", MADE)
    return MADE


def check():
    """Renders the packed chart: every alert points to its runbook, at the address or in the repository."""
    if not MADE.exists():
        raise Failed(f"{MADE} is not there: deploy/release/build chart")
    text = helm("template", "lockgate", MADE, "--set", TENANT, "--set", "monitoring.enabled=true")
    found = re.findall(r"runbook_url: (.*)/\w+\.md", text)
    place = runbooks() or "deploy/runbooks"
    if not found or set(found) != {place}:
        raise Failed(f"the runbooks are at {set(found)}, expected {place}")
    if f"image: {image() or 'lockgate'}:{VERSION}\n" not in text:
        raise Failed(f"the pods have another image than {image() or 'lockgate'}:{VERSION}")
    return f"{len(found)} alerts with runbooks at {place}"
