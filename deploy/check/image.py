"""Checks the image: builds deploy/Dockerfile with local bases and runs it with the settings of a pod.

No registry for images is reached: a Debian made by debootstrap stands for the build base, with this machine's Rust tool chain in
it, and a root of nothing but glibc, libgcc and certificates for the run base, as distroless/cc has them.
With the static binaries the image of the other architecture is built too, on an empty base, and its binary runs under qemu.
"""

import argparse
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from tools import ROOT, TARGET, output, program

sys.path.insert(0, str(ROOT / "deploy/release"))

from chat import chat  # noqa: E402
from project import FILES, Failed, TARGETS, native, runner  # noqa: E402

CACHE = TARGET / "deploy" / "image"
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
SOURCE = "https://git.invalid/lockgate"
TAG = "localhost/lockgate:check"
CONFIG = """
[admin]
listen = "0.0.0.0:9000"
[tenants.demo.token]
algorithm = "HS256"
signing_key = { file = "/run/secrets/lockgate/key" }
[tenants.demo.users]
database = "sqlite:///run/secrets/lockgate/users.sqlite3?mode=ro"
[tenants.demo.layer]
kind = "memory"
"""


def say(text):
    print(f"  {text}", flush=True)


def must(*command, **options):
    done, text, told = output(*command, **options)
    if not done:
        raise RuntimeError(f"{' '.join(map(str, command))[:200]}:\n{(text + told)[-3000:]}")
    return text.strip()


def bases():
    """Makes the two local bases, once; takes about 60 s."""
    root = CACHE / "bookworm"
    if not (root / "usr/bin/gcc").exists():
        shutil.rmtree(root, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        say("debootstrap, once")
        must(program("debootstrap"), "--variant=minbase", "--include=ca-certificates,gcc,libc6-dev", "bookworm", root)
    have = must(program("buildah"), "images", "--format", "{{.Name}}:{{.Tag}}")
    if "localhost/lockgate-build:local" not in have:
        container = must(program("buildah"), "from", "scratch")
        must(program("buildah"), "copy", "--quiet", container, root, "/")
        must(program("buildah"), "config", "--env", "PATH=/root/.cargo/bin:/usr/local/bin:/usr/bin:/bin", container)
        must(program("buildah"), "commit", "--quiet", container, "localhost/lockgate-build:local")
        must(program("buildah"), "rm", container)
    if "localhost/lockgate-run:local" not in have:
        slim = CACHE / "run"
        shutil.rmtree(slim, ignore_errors=True)
        for file in ("lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libm.so.6", "lib/x86_64-linux-gnu/libgcc_s.so.1",
                     "lib64/ld-linux-x86-64.so.2", "etc/ssl/certs/ca-certificates.crt"):
            (slim / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy((root / file).resolve(), slim / file)
        container = must(program("buildah"), "from", "scratch")
        must(program("buildah"), "copy", "--quiet", container, slim, "/")
        must(program("buildah"), "commit", "--quiet", container, "localhost/lockgate-run:local")
        must(program("buildah"), "rm", container)


def compiled():
    """Returns buildah's options for an image with a binary from the sources."""
    rustup = Path(os.environ.get("RUSTUP_HOME", Path.home() / ".rustup"))
    cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    return ["--build-arg", "BUILD_BASE=localhost/lockgate-build:local", "--build-arg", "RUN_BASE=localhost/lockgate-run:local",
            "--volume", f"{rustup}:/root/.rustup", "--volume", f"{cargo}:/root/.cargo"]


def released(architecture):
    """Returns buildah's options for an image with a static binary of deploy/release/build. No stage that compiles is run."""
    base = "localhost/lockgate-run:local" if architecture == native() else "scratch"
    return ["--build-arg", "BINARY=released", "--build-arg", f"TARGETARCH={architecture}", "--arch", architecture,
            "--build-arg", "BUILD_BASE=scratch", "--build-arg", f"RUN_BASE={base}"]


def build(tag, options):
    """Builds deploy/Dockerfile, prints the size of the image, and looks at what the image says of itself."""
    began = time.monotonic()
    with (CACHE / "build.log").open("w") as log:
        done = subprocess.run([
            program("buildah"), "bud", "--network", "host", "--layers", "-f", str(ROOT / "deploy/Dockerfile"),
            "--ignorefile", str(ROOT / "deploy/Dockerfile.dockerignore"),
            "--build-arg", f"VERSION={VERSION}", "--build-arg", "REVISION=check", "--build-arg", f"SOURCE={SOURCE}", *options,
            "--format", "docker", "-t", tag, str(ROOT)],
            stdout=log, stderr=log).returncode
    if done:
        raise RuntimeError((CACHE / "build.log").read_text()[-3000:])
    size = int(must(program("podman"), "image", "inspect", "--format", "{{.Size}}", tag))
    say(f"{tag}: built in {time.monotonic() - began:.0f} s, {size / 1e6:.1f} MB")
    described(tag)


def run():
    """Runs the image as the Deployment does: another user, nothing writable, no capability, and a memory limit if cgroups allow one."""
    podman = program("podman")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "lockgate.toml").write_text(CONFIG)
        (folder / "key").write_text("a-key-for-the-image-test-of-32-bytes")
        database = sqlite3.connect(folder / "users.sqlite3")
        database.executescript((ROOT / "deploy/dev/users.sql").read_text())
        database.close()
        for file in folder.iterdir():
            os.chown(file, 10001, 10001)
            file.chmod(0o440)
        folder.chmod(0o755)
        hardened = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=host",
                    "--cgroups=disabled", "--log-driver=k8s-file", "--no-healthcheck",   # its timer wants systemd
                    # Podman's defaults are above the limits of this machine.
                    "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        mounts = ["-v", f"{folder}/lockgate.toml:/etc/lockgate/config/lockgate.toml:ro", "-v", f"{folder}:/run/secrets/lockgate:ro"]
        ports = ["-e", "LOCKGATE_SERVER__LISTEN=127.0.0.1:18000", "-e", "LOCKGATE_ADMIN__LISTEN=127.0.0.1:19000"]
        container = must(podman, "run", "-d", *hardened, *mounts, *ports, TAG)
        try:
            deadline = time.monotonic() + 30
            while not output(podman, "exec", container, "/usr/local/bin/lockgate", "healthcheck", "--ready")[0]:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not ready: {output(podman, 'logs', container)}")
                time.sleep(0.2)
            must(podman, "exec", container, "/usr/local/bin/lockgate", "healthcheck")
            pid = must(podman, "inspect", "--format", "{{.State.Pid}}", container)
            status = Path(f"/proc/{pid}/status").read_text()
            uid = re.search(r"^Uid:\s+(\d+)", status, re.M)[1]
            caps = re.search(r"^CapEff:\s+(\w+)", status, re.M)[1]
            if uid != "10001" or int(caps, 16):
                raise RuntimeError(f"runs as {uid} with the capabilities {caps}")
            mounts_seen = Path(f"/proc/{pid}/mounts").read_text()
            if not re.search(r"^\S+ / \S+ ro", mounts_seen, re.M):
                raise RuntimeError("its root file system can be written")
            shell = output(podman, "exec", container, "/bin/sh", "-c", "true")[0]
            if shell:
                raise RuntimeError("there is a shell in the image")
            say("runs as 10001, without capabilities, on a read-only root, without a shell; /livez and /readyz answer")
            must(podman, "kill", "--signal", "TERM", container)
            code = must(podman, "wait", container)
            if code != "0":
                raise RuntimeError(f"SIGTERM ended it with {code}")
            say("SIGTERM drains it: exit 0")
        finally:
            output(podman, "rm", "-f", container)


def described(tag):
    """Raises RuntimeError unless the image has a check of its health, and tells version, revision and source as OCI's labels."""
    if "healthcheck" not in must(program("podman"), "image", "inspect", "--format", "{{.HealthCheck}}", tag).lower():
        raise RuntimeError(f"{tag} has no HEALTHCHECK")
    told = json.loads(must(program("podman"), "image", "inspect", "--format", "{{json .Labels}}", tag))
    for key, value in {"version": VERSION, "revision": "check", "source": SOURCE, "licenses": "Apache-2.0", "title": "lockgate"}.items():
        if told.get(f"org.opencontainers.image.{key}") != value:
            raise RuntimeError(f"the label {key} is {told.get(f'org.opencontainers.image.{key}')!r}, expected {value!r}")


def foreign(architecture):
    """Builds the image of another architecture, and runs a chat with the binary out of it, under qemu."""
    tag = f"{TAG}-{architecture}"
    build(tag, released(architecture))
    told = must(program("podman"), "image", "inspect", "--format", "{{.Architecture}}", tag)
    if told != architecture:
        raise RuntimeError(f"{tag} says that it is for {told}")
    container = must(program("buildah"), "from", "--arch", architecture, "--pull-never", tag)
    try:
        root = must(program("buildah"), "mount", container)
        words = runner(architecture)
        took = chat([*words, f"{root}/usr/local/bin/lockgate"])
        say(f"{architecture} under {Path(words[0]).name}: a chat after {took:.1f} s")
    finally:
        output(program("buildah"), "rm", container)


def in_own_mounts():
    """Starts this program again without the hybrid layout of control groups, in which crun refuses to run."""
    hybrid = Path("/sys/fs/cgroup/unified")
    if hybrid.is_dir() and "LOCKGATE_IMAGE_INNER" not in os.environ:
        os.environ["LOCKGATE_IMAGE_INNER"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "sh", "-c", f'umount {hybrid}; exec "$@"', "sh", sys.executable, *sys.argv])


def main():
    in_own_mounts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", action="store_true", help="with the static binaries of deploy/release/build, without compiling")
    arguments = parser.parse_args()
    try:
        bases()
        build(TAG, released(native()) if arguments.released else compiled())
        run()
        for architecture in TARGETS if arguments.released else ():
            if architecture == native():
                continue
            if (FILES / "image" / architecture / "lockgate").exists():
                foreign(architecture)
            else:
                say(f"SKIPPED: {architecture}: deploy/release/build {architecture}")
    except (RuntimeError, Failed) as problem:
        print(problem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
