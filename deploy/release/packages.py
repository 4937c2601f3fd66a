"""Puts a binary and what belongs to it into a tarball and a Debian package. Two runs on one commit give the same bytes."""

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

from project import FILES, PACKAGE, ROOT, TARGETS, VERSION, WORK, address, moment, program, run, runner

HERE = Path(__file__).resolve().parent
UNIT = ROOT / "deploy/systemd/lockgate.service"
SHELLS = {"bash": "lockgate.bash", "zsh": "_lockgate", "fish": "lockgate.fish"}


def documents(architecture, binary):
    """Writes what the program tells of itself, manual pages and completions, and returns their folder."""
    folder = WORK / architecture / "documents"
    shutil.rmtree(folder, ignore_errors=True)
    for inner in ("man", "completions"):
        (folder / inner).mkdir(parents=True)
    words = [*runner(architecture), binary]
    run(*words, "man", folder / "man")
    for shell, file in SHELLS.items():
        (folder / "completions" / file).write_text(run(*words, "completions", shell))
    return folder


def tarball(architecture, binary, told, texts):
    """Packs `lockgate-VERSION-TARGET.tar.gz`, with everything in one folder of that name. `texts` are further files by name."""
    name = f"lockgate-{VERSION}-{TARGETS[architecture]}"
    path = FILES / f"{name}.tar.gz"
    members = {"lockgate": (binary.read_bytes(), 0o755), "lockgate.service": (UNIT.read_bytes(), 0o644)}
    for file in ("LICENSE", "README.md", "CHANGELOG.md"):
        members[file] = ((ROOT / file).read_bytes(), 0o644)
    for file, text in texts.items():
        members[file] = (text.encode(), 0o644)
    for file in sorted(told.rglob("*")):
        if file.is_file():
            members[str(file.relative_to(told))] = (file.read_bytes(), 0o644)
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=moment()) as packed, \
            tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file, (content, mode) in sorted(members.items()):
            entry = tarfile.TarInfo(f"{name}/{file}")
            entry.size, entry.mode, entry.mtime = len(content), mode, moment()
            archive.addfile(entry, io.BytesIO(content))
    return path


def debian(architecture, binary, told, texts):
    """Packs `lockgate_VERSION_ARCHITECTURE.deb`: the binary, the unit, the user `lockgate` and /etc/lockgate."""
    root = WORK / architecture / "deb"
    shutil.rmtree(root, ignore_errors=True)
    share, control = root / "usr/share", root / "DEBIAN"
    place(root / "usr/bin/lockgate", binary.read_bytes(), 0o755)
    place(root / "lib/systemd/system/lockgate.service", UNIT.read_text().replace("/usr/local/bin/", "/usr/bin/").encode())
    place(root / "etc/lockgate/lockgate.toml", (HERE / "deb/lockgate.toml").read_bytes())
    (root / "etc/lockgate/tenants").mkdir()
    (root / "etc/lockgate/secrets").mkdir(mode=0o750)
    for page in sorted((told / "man").iterdir()):
        place(share / f"man/man1/{page.name}.gz", compressed(page.read_bytes()))
    completions = {"bash-completion/completions/lockgate": "lockgate.bash", "zsh/vendor-completions/_lockgate": "_lockgate",
                   "fish/vendor_completions.d/lockgate.fish": "lockgate.fish"}
    for path, file in completions.items():
        place(share / path, (told / "completions" / file).read_bytes())
    docs = share / "doc/lockgate"
    place(docs / "README.md", (ROOT / "README.md").read_bytes())
    place(docs / "changelog.gz", compressed((ROOT / "CHANGELOG.md").read_bytes()))
    place(docs / "copyright", f"Lockgate is licensed under {PACKAGE['license']}, /usr/share/common-licenses/Apache-2.0.\n"
          "What it contains of others: THIRD-PARTY-LICENSES.txt.gz\n".encode())
    for file, text in texts.items():
        place(docs / f"{file}.gz", compressed(text.encode()))
    for script in ("postinst", "prerm", "postrm"):
        place(control / script, (HERE / "deb" / script).read_bytes(), 0o755)
    place(control / "conffiles", b"/etc/lockgate/lockgate.toml\n")
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) // 1024
    place(control / "control", control_text(architecture, size).encode())
    path = FILES / f"lockgate_{VERSION}_{architecture}.deb"
    run(program("dpkg-deb", "dpkg"), "--root-owner-group", "-Zxz", "--build", root, path,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(moment())})
    return path


def control_text(architecture, size):
    lines = ["Package: lockgate", f"Version: {VERSION}", f"Architecture: {architecture}", "Maintainer: The Lockgate authors",
             "Section: net", "Priority: optional", f"Installed-Size: {size}", "Depends: adduser", "Suggests: redis-server"]
    if address():
        lines.append(f"Homepage: {address()}")
    lines += ["Description: WebSocket gateway for teams with a JWT and Redis", " " + PACKAGE["description"] + "."]
    return "\n".join(lines) + "\n"


def place(path, content, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def compressed(content):
    return gzip.compress(content, 9, mtime=0)
