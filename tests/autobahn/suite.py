"""The Autobahn test suite itself (https://github.com/crossbario/autobahn-testsuite), where it can run.

It is from the Python Package Index and needs CPython 2.7: $PYTHON27, `python2.7` on the PATH, or one that pyenv
installed (`pyenv install 2.7.18`). It is installed once, into `autobahn` below the target directory.

All cases run but 9.* (load), 12.* and 13.* (compression, which is not negotiated). A case passes if the suite calls it
and its close OK or INFORMATIONAL; NON-STRICT does not.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")).resolve() / "autobahn"
VENV = WORK / "venv"
REPORTS = WORK / "reports"

# What this version of the suite has outside of the excluded groups: fewer means that it gave up.
CASES = 247
AGENT = "lockgate"


def find_python():
    """A CPython 2.7 that starts, or None. (A version manager's shim may be on the PATH and not start.)"""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(str(p) for p in pyenv.glob("2.7*/bin/python2.7"))
    for python in [os.environ.get("PYTHON27"), "python2.7", *found]:
        if python and shutil.which(python):
            version = subprocess.run([python, "--version"], capture_output=True, text=True)
            if version.returncode == 0:
                return python
    return None


def install(python):
    """The suite in a virtual environment of its own, whose versions are pinned."""
    # The last one that makes environments for 2.7; not installed into the interpreter itself.
    tool = WORK / "virtualenv"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(tool), "virtualenv==20.15.1"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tool)}
    make = [python, "-m", "virtualenv", "--quiet", str(VENV)]
    subprocess.run(make, check=True, env=environment)
    pip = [str(VENV / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)


def run(url):
    """Every case's result, as the suite's index has it."""
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    spec = WORK / "spec.json"
    server = {"agent": AGENT, "url": url}
    excluded = ["9.*", "12.*", "13.*"]
    spec.write_text(json.dumps({
        "outdir": str(REPORTS),
        "servers": [server],
        "cases": ["*"],
        "exclude-cases": excluded,
        "exclude-agent-cases": {},
    }))
    wstest = [str(VENV / "bin" / "wstest"), "--mode", "fuzzingclient", "--spec", str(spec)]
    with open(WORK / "log", "w") as log:
        subprocess.run(wstest, stdout=log, stderr=subprocess.STDOUT, timeout=600, check=False)
    index = REPORTS / "index.json"
    return json.loads(index.read_text()).get(AGENT, {}) if index.exists() else {}


def prepare():
    """None if the suite can run here, else why not."""
    if (VENV / "bin" / "wstest").exists():
        return None
    python = find_python()
    if python is None:
        return "there is no CPython 2.7 here"
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        install(python)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(VENV, ignore_errors=True)
        return f"{python} cannot install it: {' '.join(map(str, error.cmd))} failed"
    return None


def play(url):
    """Runs the suite, prints the cases that failed and the sum; whether all passed."""
    results = run(url)
    good = ("OK", "INFORMATIONAL")
    failed = 0
    for case, result in results.items():
        verdicts = (result["behavior"], result["behaviorClose"])
        if not all(verdict in good for verdict in verdicts):
            failed += 1
            print(f"{case}: {verdicts[0]}, close {verdicts[1]}, see {REPORTS / result['reportfile']}")
    missing = max(0, CASES - len(results))
    if missing:
        print(f"{missing} cases did not run, see {WORK / 'log'}")
    print(f"{len(results) - failed} passed, {failed + missing} failed")
    return not failed and not missing
