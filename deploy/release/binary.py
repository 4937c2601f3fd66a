"""Compiles the static binaries, and looks at them: nothing to load, no symbols, the right machine."""

import os
import subprocess
import sys

from project import Failed, ROOT, TARGET, TARGETS, program, run


def compile_binary(architecture):
    """Builds `lockgate` for one architecture and returns its path. Zig is compiler and linker of the C code (aws-lc, SQLite, mimalloc)."""
    target = TARGETS[architecture]
    if target not in run("rustc", "--print", "target-list").split() or not _has_standard_library(target):
        raise Failed(f"Rust's standard library for {target} is not installed: rustup target add {target}")
    # cargo-zigbuild and Zig are in the virtual environment of this program.
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["cargo", "zigbuild", "--locked", "--profile", "dist", "--target", target, "--bin", "lockgate"],
                          cwd=ROOT, env={**os.environ, "PATH": path, "CARGO_INCREMENTAL": "0", "CARGO_TARGET_DIR": str(TARGET)})
    if done.returncode:
        raise Failed(f"cargo zigbuild for {target}: exit {done.returncode}")
    return TARGET / target / "dist" / "lockgate"


def _has_standard_library(target):
    return os.path.isdir(os.path.join(run("rustc", "--print", "sysroot").strip(), "lib/rustlib", target, "lib"))


def inspect(path, architecture):
    """Raises `Failed` unless the file is a static, stripped program of this architecture."""
    readelf = program("readelf", "binutils")
    header, segments = run(readelf, "-hW", path), run(readelf, "-lW", path)
    machine = {"amd64": "X86-64", "arm64": "AArch64"}[architecture]
    found = [
        machine not in header and f"it is not for {machine}",
        "INTERP" in segments and "it needs a dynamic linker",
        "(NEEDED)" in run(readelf, "-dW", path) and "it loads libraries",
        ".symtab" in run(readelf, "-SW", path) and "it has symbols",
    ]
    if any(found):
        raise Failed(f"{path}: {', '.join(filter(None, found))}")
