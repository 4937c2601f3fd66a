"""Proves what a build from the sources needs: in a new Debian 12 with a C compiler and its headers, and without cmake, the README's
command installs a program that serves a chat.

The compiler is the oldest that Cargo.toml allows. It and the fetched crates of this machine are seen in there, read-only. The
program is not optimized, which changes the time that this takes and nothing else.
"""

import os
from pathlib import Path

import readme
from chat import chat
from debian import PRIVATE, enter, remove
from project import Failed, PACKAGE, ROOT, VERSION, WORK, program, run

ROOM = WORK / "sources"
OLDEST = f"{PACKAGE['rust-version']}.0"
ABSENT = ("cmake", "g++", "make", "ninja", "clang", "go", "pkg-config")
INSTALLED = "/root/.cargo/bin/lockgate"
# Runs the rest of its words in the room $0, which sees the tool chain $1, the sources $2 and the registry $3 of this machine.
SCRIPT = """
    room=$0 tools=$1 source=$2 registry=$3
    shift 3
    for place in rust source root/.cargo/registry build; do mkdir -p "$room/$place"; done
    mount --bind -o ro "$tools" "$room/rust"
    mount --bind -o ro "$source" "$room/source"
    mount --bind -o ro "$registry" "$room/root/.cargo/registry"
    mount -t proc proc "$room/proc"
    exec chroot "$room" /bin/sh -ec 'cd /source; eval "$1"' sh "$@"
"""
ENVIRONMENT = {"PATH": "/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "CARGO_TARGET_DIR": "/build", "CARGO_NET_OFFLINE": "true"}


def check():
    """Installs, uses and uninstalls the program in the new system."""
    if os.geteuid():
        raise Failed("only root can enter a new system: run this as root")
    command = readme.from_sources()
    tools = tool_chain()
    run("cargo", "fetch", "--locked", cwd=ROOT)
    if not (ROOM / "etc/debian_version").exists():
        remove(ROOM)
        run(*PRIVATE, program("debootstrap", "debootstrap"), "--variant=minbase", "--include=gcc,libc6-dev", "bookworm", ROOM)
    if found := [tool for tool in ABSENT if (ROOM / "usr/bin" / tool).exists()]:
        raise Failed(f"the new system has {', '.join(found)}, so this proves less")
    try:
        inside(tools, f"{command} --debug")
        if (told := run(*enter(ROOM), INSTALLED, "--version")) != f"lockgate {VERSION}\n":
            raise Failed(f"{command!r} installed another program: {told!r}")
        took = chat([*enter(ROOM), INSTALLED])
        inside(tools, "cargo uninstall lockgate")
        if (ROOM / INSTALLED[1:]).exists():
            raise Failed("`cargo uninstall lockgate` left the program")
    finally:
        for folder in ("build", "root/.cargo"):
            remove(ROOM / folder)
    return f"{command!r} works with Rust {OLDEST}, gcc and libc6-dev alone; a chat over what it installed after {took:.1f} s"


def tool_chain():
    """Returns the folder of the oldest Rust that Cargo.toml allows. rustup installs it where it is absent."""
    run(program("rustup", "rustup"), "toolchain", "install", OLDEST, "--profile", "minimal", "--no-self-update")
    return run("rustc", f"+{OLDEST}", "--print", "sysroot").strip()


def inside(tools, script):
    """Runs a script in the folder of the sources."""
    registry = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "registry"
    run(*PRIVATE, "sh", "-ec", SCRIPT, ROOM, tools, ROOT, registry, script, env=ENVIRONMENT)
