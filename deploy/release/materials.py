"""What is in a binary: the list of its parts (CycloneDX) and the licences of all of them.

Both begin with the crates that cargo links for one target. Build scripts and procedural macros run while it compiles, and are
not in it. musl and Rust's standard library are.
"""

import datetime
import json
import re
import sys
import uuid
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from project import Failed, PACKAGE, ROOT, TARGETS, VERSION, address, moment, run

LICENCE_FILE = re.compile(r"(?i)^(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?$")


def crates(architecture):
    """Returns the linked crates besides this one, as cargo's metadata has them, in the order of their names."""
    target = TARGETS[architecture]
    tree = run("cargo", "tree", "--locked", "--edges", "normal,no-proc-macro", "--target", target, "--prefix", "none", "--format", "{p}", cwd=ROOT)
    linked = {tuple(line.split()[:2]) for line in tree.splitlines()}
    metadata = json.loads(run("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target, cwd=ROOT))
    packages = [p for p in metadata["packages"] if (p["name"], f"v{p['version']}") in linked and p["name"] != PACKAGE["name"]]
    if len(packages) + 1 != len(linked):
        raise Failed(f"cargo tree names {len(linked)} crates and cargo metadata {len(packages) + 1} of them")
    edges = {node["id"]: node["dependencies"] for node in metadata["resolve"]["nodes"]}
    return sorted(packages, key=lambda p: (p["name"], p["version"])), edges, metadata["resolve"]["root"]


def _purl(name, version):
    return f"pkg:cargo/{name}@{version}"


def _checksums():
    """Returns the checksum of each crate in Cargo.lock by name and version."""
    lock = re.findall(r'\[\[package\]\]\nname = "(.+)"\nversion = "(.+)"\nsource = .+\nchecksum = "(.+)"', (ROOT / "Cargo.lock").read_text())
    return {(name, version): checksum for name, version, checksum in lock}


def toolchain():
    """Returns name, version and licence of what the compiler adds."""
    rustc = re.search(r"^release: (.+)$", run("rustc", "-vV"), re.M)[1]
    return [("rust-std", rustc, "MIT OR Apache-2.0"), ("musl", "", "MIT")]


def bill(architecture):
    """Returns the bill of materials as the text of a CycloneDX document, checked against its schema."""
    packages, edges, root = crates(architecture)
    known = {p["id"]: _purl(p["name"], p["version"]) for p in packages} | {root: _purl(PACKAGE["name"], VERSION)}
    checksums = _checksums()
    components = []
    for package in packages:
        name, version = package["name"], package["version"]
        component = {"type": "library", "bom-ref": known[package["id"]], "name": name, "version": version, "purl": known[package["id"]]}
        if package["license"]:
            # The old form of crates.io for "or".
            component["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if checksum := checksums.get((name, version)):
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(component)
    for name, version, licence in toolchain():
        components.append({"type": "library", "bom-ref": name, "name": name, **({"version": version} if version else {}),
                           "licenses": [{"expression": licence}]})
    subject = {"type": "application", "bom-ref": known[root], "name": PACKAGE["name"], "version": VERSION, "purl": known[root],
               "description": PACKAGE["description"], "licenses": [{"license": {"id": PACKAGE["license"]}}]}
    if address():
        subject["externalReferences"] = [{"type": "vcs", "url": address()}]
    lock = (ROOT / "Cargo.lock").read_text()
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{VERSION} {architecture} {moment()} {lock}')}", "version": 1,
        "metadata": {"timestamp": datetime.datetime.fromtimestamp(moment(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "component": subject},
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": sorted(known[d] for d in edges[identity] if d in known)} for identity, ref in known.items()],
    }
    text = json.dumps(document, indent=1) + "\n"
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise Failed(f"the bill of materials is not valid CycloneDX 1.6: {str(problem)[:500]}")
    return text


def _texts(package):
    """Yields the licence files of a crate, and those of the C code that it brings."""
    folder = Path(package["manifest_path"]).parent
    found = folder.rglob("*") if package["name"].endswith("-sys") else folder.iterdir()
    for path in sorted(found):
        if path.is_file() and LICENCE_FILE.match(path.name) and path.suffix not in (".rs", ".py", ".go", ".c", ".h"):
            yield path.read_text(errors="replace").strip()
    if package["license_file"] and not LICENCE_FILE.match(Path(package["license_file"]).name):
        yield (folder / package["license_file"]).read_text(errors="replace").strip()


def licences(architecture):
    """Returns one text with every licence, each once, and under it the crates that bring it."""
    packages, _, _ = crates(architecture)
    users, whole, silent = {}, {}, []
    for package in packages:
        texts = list(_texts(package))
        for text in texts:
            # Many copies of one licence differ in their line breaks alone.
            plain = " ".join(text.split())
            whole.setdefault(plain, text)
            users.setdefault(plain, []).append(f"{package['name']} {package['version']}")
        if not texts:
            silent.append(f"{package['name']} {package['version']}: {package['license']}")
    for name, text in (("musl", _musl()), ("rust-std", _standard_library())):
        whole[text], users[text] = text, [name]
    lines = [f"Lockgate {VERSION} contains the following software.", ""]
    lines += [f"{p['name']} {p['version']}: {p['license'] or 'see below'}" for p in packages]
    lines += [f"{' '.join(filter(None, (name, version)))}: {licence}" for name, version, licence in toolchain()]
    if silent:
        lines += ["", "Without a licence text of their own, under the licence that they name:", *silent]
    for plain, names in sorted(users.items(), key=lambda entry: entry[1]):
        lines += ["", "=" * 100, ", ".join(dict.fromkeys(names)), "=" * 100, "", whole[plain]]
    return "\n".join(lines) + "\n"


def _musl():
    """Returns the licence of musl, from the copy that Zig links."""
    for folder in sys.path:
        path = Path(folder, "ziglang/lib/libc/musl/COPYRIGHT")
        if path.exists():
            return path.read_text().strip()
    raise Failed("the package ziglang has no licence of musl")


def _standard_library():
    """Returns the notice of Rust's standard library out of the tool chain."""
    folder = Path(run("rustc", "--print", "sysroot").strip(), "share/doc/rust")
    path = folder / "COPYRIGHT-library.html"
    if not path.exists():
        raise Failed(f"{path} is not there: rustup's tool chain has it")
    text = re.sub(r"<(style|script).*?</\1>", "", path.read_text(), flags=re.S)
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"<[^>]+>", "", text)).strip()
