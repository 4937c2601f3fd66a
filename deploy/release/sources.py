"""Proves what a build from the sources needs: in a new Debian 12 with a C compiler and its headers, and without cmake, every crate
compiles that brings C code.

The Rust tool chain and the fetched crates of this machine are seen in there, read-only.
"""

import json
import os
from pathlib import Path

from debian import PRIVATE, remove
from project import Failed, ROOT, WORK, program, run

ROOM = WORK / "sources"
TOOLS = {"cc", "cmake", "pkg-config", "bindgen"}


def crates():
    """Returns the linked crates whose build may call a tool that is not Rust's."""
    tree = run("cargo", "tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}", cwd=ROOT)
    linked = {tuple(line.split()[:2]) for line in tree.splitlines()}
    packages = json.loads(run("cargo", "metadata", "--locked", "--format-version", "1", cwd=ROOT))["packages"]
    return sorted(p["name"] for p in packages if (p["name"], f"v{p['version']}") in linked
                  and TOOLS & {d["name"] for d in p["dependencies"] if d["kind"] == "build"})


def check():
    """Compiles these crates in the new system."""
    if os.geteuid():
        raise Failed("only root can enter a new system: run this as root")
    names = crates()
    if "aws-lc-sys" not in names:
        raise Failed(f"aws-lc-sys is not among the crates with C code: {names}")
    run("cargo", "fetch", "--locked", cwd=ROOT)
    if not (ROOM / "etc/debian_version").exists():
        remove(ROOM)
        run(*PRIVATE, program("debootstrap", "debootstrap"), "--variant=minbase", "--include=gcc,libc6-dev", "bookworm", ROOM)
    for tool in ("cmake", "g++", "make", "ninja", "clang", "go", "pkg-config"):
        if (ROOM / "usr/bin" / tool).exists():
            raise Failed(f"the new system has {tool}, so this proves less")
    sysroot = run("rustc", "--print", "sysroot").strip()
    registry = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry"
    script = """
        for place in rust source cargo/registry build; do mkdir -p "$1/$place"; done
        mount --bind -o ro "$2" "$1/rust"; mount --bind -o ro "$3" "$1/source"; mount --bind -o ro "$4" "$1/cargo/registry"
        mount -t proc proc "$1/proc"
        shift 4
        exec chroot "$0" /bin/sh -ec 'cd /source; cargo build --offline --locked "$@"' sh "$@"
    """
    wanted = [word for name in names for word in ("--package", name)]
    run(*PRIVATE, "sh", "-ec", script, ROOM, ROOM, sysroot, ROOT, registry, *wanted,
        env={"PATH": "/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "CARGO_HOME": "/cargo", "CARGO_TARGET_DIR": "/build"})
    remove(ROOM / "build")
    return f"{', '.join(names)} compile with gcc and libc6-dev alone"
