"""The steps of deploy/release/build, in its virtual environment."""

import hashlib
import shutil
import sys
import time

import binary
import chart
import materials
import packages
from project import FILES, Failed, TARGETS, VERSION, address


def release(architecture):
    """Builds the files of one architecture."""
    began = time.monotonic()
    program = binary.compile_binary(architecture)
    binary.inspect(program, architecture)
    told = packages.documents(architecture, program)
    bill = materials.bill(architecture)
    texts = {"THIRD-PARTY-LICENSES.txt": materials.licences(architecture), "lockgate.cdx.json": bill}
    made = [packages.tarball(architecture, program, told, texts), packages.debian(architecture, program, told, texts)]
    (FILES / f"lockgate-{VERSION}-{TARGETS[architecture]}.cdx.json").write_text(bill)
    image = FILES / "image" / architecture / "lockgate"
    image.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(program, image)
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in [program, *made])
    print(f"{architecture}: {sizes}; after {time.monotonic() - began:.0f} s", flush=True)


def sum_up():
    """Writes SHA256SUMS over every file that is there."""
    files = sorted(path for path in FILES.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(FILES)}\n" for path in files]
    (FILES / "SHA256SUMS").write_text("".join(lines))


def main(wanted):
    known = [*TARGETS, "chart"]
    for name in wanted:
        if name not in known:
            print(f"no {name!r} to build; there are: {' '.join(known)}", file=sys.stderr)
            return 2
    FILES.mkdir(parents=True, exist_ok=True)
    print(f"Lockgate {VERSION}; the repository's address: {address() or 'none (`repository` in Cargo.toml)'}", flush=True)
    try:
        for name in wanted or known:
            if name == "chart":
                print(f"chart: {chart.package().name}", flush=True)
            else:
                release(name)
        sum_up()
    except Failed as problem:
        print(f"deploy/release/build: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
