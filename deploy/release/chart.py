"""Packs the Helm chart, with the repository's address where there is one."""

import shutil

from project import FILES, ROOT, TARGET, VERSION, WORK, address, program, run

CHART = ROOT / "deploy/helm/lockgate"


def package():
    """Returns the packed chart. Its alerts then link to the runbooks of this version, and its page to the sources."""
    folder = WORK / "chart" / "lockgate"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHART, folder)
    if address():
        about = folder / "Chart.yaml"
        about.write_text(f"{about.read_text()}home: {address()}\nsources: [{address()}]\n")
        values = folder / "values.yaml"
        empty = '  runbooks: ""  '
        text = values.read_text()
        assert empty in text, "values.yaml: monitoring.runbooks has another form"
        values.write_text(text.replace(empty, f"  runbooks: {address()}/blob/v{VERSION}/deploy/runbooks  "))
    own = TARGET / "deploy/bin/helm"
    run(own if own.exists() else program("helm", "helm, or run deploy/check/run deps"), "package", folder, "--destination", WORK / "chart")
    made = FILES / f"lockgate-chart-{VERSION}.tgz"
    shutil.move(WORK / "chart" / f"lockgate-{VERSION}.tgz", made)
    return made
