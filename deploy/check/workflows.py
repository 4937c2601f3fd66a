"""Checks .github/workflows with actionlint, and holds them against tests/run and against the one place of the repository's address."""

import re
import tomllib

import yaml

from tools import ROOT, Missing, output, program

WORKFLOWS = ROOT / ".github/workflows"
# A reference to an action that may be anybody's at any time.
LOOSE = re.compile(r"uses: *[^@\s]+(@(main|master))?\s*$", re.M)

# (what was done, in which file, old text, new text, words of the finding)
MISTAKES = [
    ("an output that no step has", "release.yml", "steps.version.outputs.version", "steps.versions.outputs.version", 'property "versions" is not defined'),
    ("a job that needs another name", "release.yml", "needs: [files, image]", "needs: [files, images]", "needs job"),
    ("a misspelt permission", "release.yml", "id-token: write", "id-tokens: write", 'unknown permission scope "id-tokens"'),
    ("a misspelt key", "ci.yml", "timeout-minutes", "timeout-minute", 'unexpected key "timeout-minute"'),
    ("an input that an action does not have", "ci.yml", "node-version", "nodes-version", 'input "nodes-version" is not defined'),
    ("a step of tests/run that CI leaves out", "ci.yml", "faults load", "faults", "CI does not run load"),
    ("an action without a version", "ci.yml", "actions/checkout@v4", "actions/checkout@main", "an action without a version"),
    ("a made-up address", "release.yml", "${{ github.server_url }}/${{ github.repository }}", "https://github.com/acme/lockgate", "an address written out"),
]


def actionlint(folder):
    """Returns what actionlint finds in the workflows of a folder."""
    files = sorted(folder.glob("*.yml"))
    done, text, told = output(program("actionlint"), "-no-color", "-oneline", "-shellcheck=", "-pyflakes=", *files)
    return [] if done else [line for line in (text + told).splitlines() if line]


def house_rules(folder):
    """Yields what actionlint does not know."""
    steps = re.search(r"^readonly STEPS=\((.*)\)$", (ROOT / "tests/run").read_text(), re.M)[1].split()
    jobs = yaml.safe_load((folder / "ci.yml").read_text())["jobs"]
    ran = " ".join(jobs["check"]["strategy"]["matrix"]["steps"]).split()
    for step in sorted(set(steps) ^ set(ran)):
        yield f"ci.yml: CI does not run {step}" if step in steps else f"ci.yml: tests/run has no step {step}"
    for file in sorted(folder.glob("*.yml")):
        text = file.read_text()
        for loose in LOOSE.finditer(text):
            yield f"{file.name}: an action without a version: {loose[0].strip()}"
        for url in re.findall(r"(?:https?://|oci://)[\w.-]+\.\w+\S*", text):
            yield f"{file.name}: an address written out: {url}"


def made_up_addresses():
    """Yields places that name a repository, where Cargo.toml names none."""
    if tomllib.loads((ROOT / "Cargo.toml").read_text())["package"].get("repository"):
        return
    for name in ("Cargo.toml", "README.md", "deploy/Dockerfile", "deploy/helm/lockgate/Chart.yaml", "deploy/prometheus/alerts.yaml"):
        for url in re.findall(r"https?://(?:github|gitlab)\.com/[\w./-]*lockgate[\w./-]*", (ROOT / name).read_text()):
            yield f"{name}: {url}, and `repository` in Cargo.toml is unset"


def survivors(scratch):
    """Yields the mistakes that nothing caught. `scratch` is an empty folder."""
    # The copy is seen as a repository of its own.
    folder = scratch / ".github/workflows"
    folder.mkdir(parents=True)
    for what, name, old, new, expected in MISTAKES:
        for file in WORKFLOWS.glob("*.yml"):
            text = file.read_text()
            assert file.name != name or old in text, f"{what}: {name} has no {old!r}"
            (folder / file.name).write_text(text.replace(old, new) if file.name == name else text)
        found = [*actionlint(folder), *house_rules(folder)]
        if not any(expected in finding for finding in found):
            yield f"{what}: expected {expected!r}, found {found or 'nothing'}"


def findings(scratch, say):
    found = [*house_rules(WORKFLOWS), *made_up_addresses()]
    try:
        program("actionlint")
    except Missing:
        say("SKIPPED: actionlint, which needs Go 1.25 or newer to be built")
        return found
    found += actionlint(WORKFLOWS)
    survived = list(survivors(scratch))
    say(f"{len(MISTAKES) - len(survived)} of {len(MISTAKES)} mistakes caught")
    return found + survived
