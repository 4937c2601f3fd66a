"""The paths of the repository, the binary under test and the programs that the checks run."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
LOCKGATE = Path(os.environ.get("LOCKGATE_BINARY", TARGET / "debug" / "lockgate"))


class Missing(Exception):
    """A program that a check needs is missing."""


def program(name):
    """Returns the path of a program: first the copy below target/, then PATH and the system's folders."""
    own = TARGET / "deploy" / "bin" / name
    venv = TARGET / "deploy" / "venv" / "bin" / name
    for path in (own, venv):
        if path.exists():
            return str(path)
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Missing(f"{name} is not installed: `tests/run deps` does it")
    return found


def output(*command, **options):
    """Returns standard output and error of a command, and True if it succeeded."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    return done.returncode == 0, done.stdout, done.stderr


def lockgate(*arguments, **options):
    """Runs the binary under test."""
    if not LOCKGATE.exists():
        raise Missing(f"{LOCKGATE} is not there: cargo build")
    return output(LOCKGATE, *arguments, **options)
