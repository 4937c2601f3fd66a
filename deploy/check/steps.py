"""The steps of deploy/check/run, in its virtual environment."""

import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import yaml

import chart
import composed
import dashboards
import manifests
import mutations
import policy
import workflows
from promql import RULE_FILES, rules
from tools import ROOT, Missing, lockgate, output, program

DEPLOY = ROOT / "deploy"
CRD_RULE = ROOT / "k8s/components/monitoring/prometheusrule.yaml"


def say(text):
    print(f"  {text}", flush=True)


def judge(documents):
    return [f for version in manifests.VERSIONS for f in manifests.schema_findings(documents, version)] + policy.findings(documents)


def step_manifests():
    """Checks the manifests: schemas, policy, and mistakes that must not pass."""
    rendered = {name: manifests.render(name) for name in manifests.RENDERED}
    found = [f"{name}: {finding}" for name, documents in rendered.items() for finding in judge(documents)]
    survived = list(mutations.survivors(rendered, judge))
    say(f"{len(rendered)} renderings, {sum(map(len, rendered.values()))} objects, Kubernetes {' and '.join(manifests.VERSIONS)}; "
        f"{len(mutations.MUTATIONS) - len(survived)} of {len(mutations.MUTATIONS)} mistakes caught")
    say(f"without a schema, by hand-written rules only: {', '.join(sorted(kind for _, kind in manifests.CUSTOM))}")
    return found + survived


def step_chart():
    """Checks the Helm chart: equal to kustomize, schemas, policy, and values that must not pass."""
    return chart.findings(judge, say)


def step_prometheus():
    """Checks rules and alerts: their form, their tests, and a runbook for each."""
    promtool, found = program("promtool"), []
    tests = sorted((DEPLOY / "prometheus/tests").glob("*.yaml"))
    for command in (["check", "rules", *RULE_FILES], ["check", "config", DEPLOY / "prometheus/prometheus.yml"], ["test", "rules", *tests]):
        done, text, told = output(promtool, *command)
        if not done:
            found.append(f"promtool {' '.join(map(str, command[:2]))}: {text}{told}")
    cases = [case for file in tests for case in yaml.safe_load(file.read_text())["tests"]]
    alerts = {name: rule for name, rule in rules() if "alert" in rule}
    for name, rule in alerts.items():
        samples = [sample for case in cases if case["name"] == name for sample in case["promql_expr_test"]]
        if not any(sample["exp_samples"] for sample in samples):
            found.append(f"{name}: no test shows it firing")
        if not any(not sample["exp_samples"] for sample in samples):
            found.append(f"{name}: no test shows it quiet")
        if any(name not in sample["expr"] for sample in samples):
            found.append(f"{name}: a test of its name asks for another alert")
        runbook = DEPLOY / "runbooks" / f"{name}.md"
        if not runbook.exists() or rule["annotations"]["runbook_url"] != f"deploy/runbooks/{name}.md":
            found.append(f"{name}: no runbook at its runbook_url, deploy/runbooks/{name}.md")
        if rule["labels"].get("severity") not in ("page", "ticket"):
            found.append(f"{name}: neither page nor ticket")
    found += [f"{file.name}: a runbook of no alert" for file in (DEPLOY / "runbooks").glob("*.md") if file.stem not in alerts]
    say(f"{len(alerts)} alerts with a runbook each, {sum(len(case['promql_expr_test']) for case in cases)} moments tested")
    return found


def step_files():
    """Checks the other files of deploy/ with linters and with the programs that read them."""
    found = []
    done, text, told = output(program("hadolint"), "-c", DEPLOY / ".hadolint.yaml", DEPLOY / "Dockerfile")
    if not done:
        found.append(f"hadolint: {text}{told}")
    # The long deploy/release/first-hour types what the README says; here it only has to find it.
    done, text, told = output(DEPLOY / "release/first-hour", "--print")
    if not done:
        found.append(f"README.md: {text}{told}")
    found += _image() + _proxies() + composed.findings(say) + _unit() + _install()
    found += dashboards.findings()
    return found


def _image():
    """Checks that image and pod agree on the user and the paths."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    pod = next(d for d in manifests.render("overlays/production") if d["kind"] == "Deployment")["spec"]["template"]["spec"]
    context = pod["securityContext"]
    wanted = [f"USER {context['runAsUser']}:{context['runAsGroup']}", 'ENTRYPOINT ["/usr/local/bin/lockgate"]',
              *(f"ENV {e['name']}={e['value']}" for e in pod["containers"][0]["env"] if e["name"] == "LOCKGATE_CONFIG")]
    return [f"Dockerfile: no line {line!r}" for line in wanted if f"\n{line}\n" not in dockerfile]


def _proxies():
    with tempfile.TemporaryDirectory() as folder:
        # Only the network of compose resolves these names.
        text = (DEPLOY / "nginx/nginx.conf").read_text().replace("lockgate-1:", "127.0.0.1:").replace("lockgate-2:", "127.0.0.2:")
        config = Path(folder, "nginx.conf")
        config.write_text(text.replace("/tmp/nginx", f"{folder}/nginx"))
        checks = [(program("haproxy"), "-c", "-f", DEPLOY / "haproxy/haproxy.cfg"), (program("nginx"), "-t", "-p", folder, "-c", config)]
        done = [output(*check) for check in checks]
    return [f"{text}{told}" for good, text, told in done if not good]


def _unit():
    unit = (DEPLOY / "systemd/lockgate.service").read_text()
    try:
        analyze = program("systemd-analyze")
    except Missing:
        say("SKIPPED: systemd-analyze verify (no systemd here)")
        return []
    with tempfile.TemporaryDirectory() as folder:
        # systemd-analyze checks that the program exists.
        path = Path(folder, "lockgate.service")
        path.write_text(unit.replace("/usr/local/bin/lockgate", "/bin/true"))
        # Whether the pages of Documentation= are installed here says nothing of the unit, and a minimal system has no `man`.
        done, text, told = output(analyze, "--man=no", "verify", path)
    return [] if done and not told.strip() else [f"systemd-analyze verify: {text}{told}"]


def _install():
    """Checks that `cargo install` makes one program, and which Rust the pages ask for. What the tests have built is not built again."""
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    with tempfile.TemporaryDirectory() as folder:
        done, _, told = output(program("cargo"), "install", "--quiet", "--offline", "--locked", "--debug", "--path", ROOT, "--root", folder, cwd=ROOT)
        if not done:
            return [f"cargo install: {told}"]
        made = [path.name for path in Path(folder, "bin").iterdir()]
        good, text, told = output(Path(folder, "bin/lockgate"), "--version")
    found = [f"{page} does not ask for Rust {package['rust-version']} or later" for page in ("README.md", "docs/install.md")
             if f"This needs Rust {package['rust-version']} or later" not in (ROOT / page).read_text()]
    if not good or made != ["lockgate"] or text != f"lockgate {package['version']}\n":
        found.append(f"cargo install made {made}: {text}{told}")
    return found


def step_workflows():
    """Checks the workflows of .github with actionlint, and against tests/run."""
    with tempfile.TemporaryDirectory() as scratch:
        return workflows.findings(Path(scratch), say)


def step_live():
    """Evaluates panels and rules on a Prometheus with two live replicas."""
    import live

    return live.findings(say)


def step_rollout():
    """Runs a short rehearsal with HAProxy and 300 clients."""
    return _rehearsal("--clients", "300", "--proxy", "haproxy", "--hurry", "--without-comparison")


def _rehearsal(*arguments):
    done = subprocess.run([sys.executable, str(Path(__file__).parent / "rehearsal.py"), *arguments]).returncode
    return ["the rehearsal"] if done else []


def write_rule():
    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))
    document = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
                "metadata": {"name": "lockgate", "labels": {"app.kubernetes.io/name": "lockgate"}}, "spec": policy.rule_groups()}
    CRD_RULE.write_text("# Made from deploy/prometheus by deploy/check/run --write-rule; the policy check holds the two together.\n"
                        + yaml.dump(document, Dumper=Dumper, sort_keys=False, width=140))
    chart.RULES.write_text("# Made from deploy/prometheus by deploy/check/run --write-rule; the chart check holds the two together.\n"
                           + yaml.dump(policy.rule_groups(), Dumper=Dumper, sort_keys=False, width=140))


STEPS = {"manifests": step_manifests, "chart": step_chart, "prometheus": step_prometheus, "files": step_files, "workflows": step_workflows, "live": step_live, "rollout": step_rollout}


def main(arguments):
    if arguments == ["--write-rule"]:
        write_rule()
        return 0
    if arguments[:1] == ["rehearsal"]:
        return 1 if _rehearsal(*arguments[1:]) else 0
    if arguments[:1] == ["image"]:
        return subprocess.run([sys.executable, str(Path(__file__).parent / "image.py"), *arguments[1:]]).returncode
    passed = failed = 0
    for name in arguments or STEPS:
        began = time.monotonic()
        print(f"--- {name}", flush=True)
        try:
            found = STEPS[name]()
        except Missing as missing:
            found = [str(missing)]
        for finding in found:
            print(f"  FOUND: {finding}")
        passed, failed = passed + (not found), failed + bool(found)
        print(f"--- {name}: {'failed' if found else 'passed'} after {time.monotonic() - began:.0f} s", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
