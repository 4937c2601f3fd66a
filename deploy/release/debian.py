"""Installs the Debian package in a new Debian 12, and removes it again.

The new system is a folder. debootstrap makes its device nodes with mknod, and mounts a /proc of its own in a mount namespace that
ends with it. The folder is removed without crossing into another file system.
"""

import os
import shutil
import subprocess
from pathlib import Path

from chat import chat
from project import FILES, Failed, VERSION, WORK, native, program, run

BASE, ROOM = WORK / "bookworm", WORK / "room"
# Debian's own records, which change with every package.
RECORDS = ("var/lib/dpkg", "var/log", "var/cache", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "tmp", "proc", "root", "run")
AS_SERVICE = "setpriv --reuid=lockgate --regid=lockgate --clear-groups"
PRIVATE = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork"]


def base():
    """Makes a minimal Debian 12, once; takes about a minute."""
    if (BASE / "etc/debian_version").exists():
        return
    remove(BASE)
    run(*PRIVATE, program("debootstrap", "debootstrap"), "--variant=minbase", "bookworm", BASE)


def remove(folder):
    """Removes a folder; a file system that is mounted in it stops this."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[1].startswith(f"{folder}/")]
    if mounted:
        raise Failed(f"something is mounted in {folder}: {mounted}")
    if folder.exists():
        run("rm", "-rf", "--one-file-system", folder)


def enter(room, *namespaces):
    """Returns the words before a command that runs in a room, with a /proc of its own; they end with the command, and it with them."""
    # mount and chroot run in the namespaces that unshare has made.
    return [*PRIVATE, *namespaces, "--kill-child", "sh", "-ec", 'mount -t proc proc "$0/proc"; exec chroot "$0" "$@"', str(room)]


def inside(script, room=ROOM, environment=()):
    """Runs a script in a room and returns what it prints."""
    return run(*enter(room), "/bin/sh", "-ec", script,
               env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", **dict(environment)})


def content():
    """Returns every path of the room but Debian's own records."""
    found = set()
    for folder, folders, files in os.walk(ROOM):
        inner = os.path.relpath(folder, ROOM)
        if inner.startswith(RECORDS):
            folders[:] = []
            continue
        found |= {os.path.normpath(os.path.join(inner, name)) for name in [*folders, *files]}
    return {path for path in found if not path.startswith(RECORDS)} | {f"user {line}" for line in (ROOM / "etc/passwd").read_text().splitlines()}


def check():
    """Installs, uses, upgrades, removes and purges the package."""
    package = FILES / f"lockgate_{VERSION}_{native()}.deb"
    if not package.exists():
        raise Failed(f"{package} is not there: deploy/release/build {native()}")
    if os.geteuid():
        raise Failed("only root can make a new system with its users: run this as root")
    base()
    remove(ROOM)
    try:
        run("cp", "-a", "--reflink=auto", BASE, ROOM)
        before = content()
        shutil.copy(package, ROOM / "tmp/lockgate.deb")
        installed(inside("dpkg --install /tmp/lockgate.deb"))
        took = chat([*enter(ROOM), *AS_SERVICE.split(), "/usr/bin/lockgate"])
        upgraded()
        removed(before)
    finally:
        remove(ROOM)
    return f"installed in a minimal Debian 12, a chat as the user lockgate after {took:.1f} s, upgraded, removed, purged without a trace"


def expect(condition, text):
    if not condition:
        raise Failed(text)


def installed(told):
    """Looks at what the package has put into the room."""
    told_check, _, told_start = next((line for line in told.splitlines() if " && " in line), "").partition(" && ")
    expect(told_start == "systemctl enable --now lockgate", f"the package says nothing of the next step: {told}")
    expect(inside("lockgate --version").strip() == f"lockgate {VERSION}", "another version is on the PATH")
    expect(inside("stat -c '%U:%G %a' /etc/lockgate/secrets").strip() == "root:lockgate 750", "the folder of secrets is open to others")
    expect("/usr/sbin/nologin" in inside("getent passwd lockgate"), "the user can log in")
    # The shipped configuration lacks nothing but a tenant.
    answer = inside(f"{told_check} 2>&1 || true")
    expect("found no tenant" in answer and answer.count("error:") == 1, f"config check of the shipped file: {answer}")
    inside(TENANT)
    answer = inside(f"{AS_SERVICE} {told_check.strip()} 2>&1")
    expect("error" not in answer, f"config check with a tenant: {answer}")
    unit = inside("cat /lib/systemd/system/lockgate.service")
    expect("ExecStart=/usr/bin/lockgate serve" in unit and "/usr/local" not in unit.replace("in /usr/local/bin and", ""), "the unit starts another binary")
    inside("test -s /usr/share/man/man1/lockgate.1.gz -a -s /usr/share/bash-completion/completions/lockgate -a -s /usr/share/doc/lockgate/copyright")


TENANT = """
printf 'a-key-of-more-than-thirty-two-bytes' > /etc/lockgate/secrets/acme
chown root:lockgate /etc/lockgate/secrets/acme
chmod 640 /etc/lockgate/secrets/acme
cat > /etc/lockgate/tenants/acme.toml <<'END'
[tenants.acme.token]
algorithm = "HS256"
signing_key = { file = "/etc/lockgate/secrets/acme" }
[tenants.acme.users]
database = "sqlite:///var/lib/acme.sqlite3"
[[tenants.acme.routes]]
path = "ws/"
groups = ["all"]
END
"""


def upgraded():
    """Installs the package once more: what the operator wrote stays, and nothing restarts by itself."""
    inside("echo '# mine' >> /etc/lockgate/lockgate.toml")
    told = inside("dpkg --install /tmp/lockgate.deb")
    expect("still runs the old version" in told, f"the upgrade does not speak of the restart: {told}")
    expect("# mine" in inside("cat /etc/lockgate/lockgate.toml"), "the upgrade took the operator's configuration")
    inside("test -s /etc/lockgate/secrets/acme")


def removed(before):
    """Removes the package, which keeps the configuration, and purges it, which keeps nothing."""
    inside("dpkg --remove lockgate; ! command -v lockgate; test -s /etc/lockgate/tenants/acme.toml")
    inside("dpkg --purge lockgate")
    left, lost = sorted(content() - before), sorted(before - content())
    expect(not left and not lost, f"after the purge there is more: {left[:10]}, and less: {lost[:10]}")
