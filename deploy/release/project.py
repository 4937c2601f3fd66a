"""The facts of a release: version, address, time, architectures, folders; and how its programs are run."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
# Programs and scratch of a release, and what is handed out.
WORK = TARGET / "release-work"
FILES = TARGET / "release-files"
PACKAGE = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
VERSION = PACKAGE["version"]
# Debian's name of an architecture, and Rust's of a static Linux program on it.
TARGETS = {"amd64": "x86_64-unknown-linux-musl", "arm64": "aarch64-unknown-linux-musl"}


class Failed(Exception):
    """Something that the release needs is missing or wrong; the text says what to do."""


def address():
    """Returns the repository's address without a slash at its end, or None. `repository` in Cargo.toml is its one place; a build that
    knows better, as the workflow of a fork does, sets LOCKGATE_REPOSITORY. Where both are absent, no file points anywhere."""
    return (PACKAGE.get("repository") or os.environ.get("LOCKGATE_REPOSITORY") or "").rstrip("/") or None


def moment():
    """Returns the time that all files of a release carry, so that two builds of a commit are equal: that of the commit."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 0


def run(*command, **options):
    """Runs a command and returns its standard output; a failure is `Failed` with the end of both outputs."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))[:300]}: exit {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def program(name, package):
    """Returns the path of a program."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Failed(f"{name} is not installed: apt-get install {package}")
    return found


def native():
    """Returns Debian's name of this machine's architecture."""
    machine = os.uname().machine
    for name, target in TARGETS.items():
        if target.startswith(f"{machine}-"):
            return name
    raise Failed(f"a release is built on x86_64 or aarch64, and this machine is {machine}")


def runner(architecture):
    """Returns the words before a program of this architecture: none, or those of an emulator."""
    if architecture == native():
        return []
    emulator = f"qemu-{TARGETS[architecture].split('-')[0]}"
    for name in (emulator, f"{emulator}-static"):
        if found := shutil.which(name):
            return [found]
    return [str(fetched_emulator(f"{emulator}-static"))]


def fetched_emulator(name):
    """Returns an emulator out of Debian's package, which is unpacked and not installed: an installed one would register itself with
    the kernel of this machine."""
    folder = WORK / "qemu"
    found = folder / "usr/bin" / name
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            run(program("apt-get", "apt"), "download", "qemu-user-static", cwd=folder)
        except Failed as problem:
            raise Failed(f"{name} is not installed and cannot be fetched: apt-get install qemu-user\n{problem}") from problem
        [package] = folder.glob("*.deb")
        run(program("dpkg-deb", "dpkg"), "--extract", package, folder)
    return found
