"""Reads the commands and files out of README.md, so that nothing repeats them."""

import re

from project import Failed, ROOT

START = "## A first configuration"


def from_sources():
    """Returns the command that installs the program from the sources."""
    return block(section("## Install"), "sh")


def section(heading):
    """Returns what stands below a heading."""
    _, found, text = (ROOT / "README.md").read_text().partition(f"\n{heading}\n")
    if not found:
        raise Failed(f"README.md has no section {heading!r}")
    return text.partition("\n## ")[0]


def first_configuration():
    """Returns what the README's first configuration has a stranger type, by the names that typist.py knows."""
    text = section(START)
    _, *steps = re.split(r"^\*\*(?=\d+\. )", text, flags=re.M)
    if [step[0] for step in steps] != list("123456"):
        raise Failed(f"{START!r} has other steps than 1 to 6: {[step[:20] for step in steps]}")
    settings, secrets, configuration, serve, connect, send = steps
    return {
        "settings": block(settings, "python"),
        "secrets": block(secrets, "sh"),
        "configuration": block(configuration, "toml"),
        **served(block(serve, "sh")),
        "page": piece(connect, r'new WebSocket\("([^"]+)" \+ accessToken'),
        "message": piece(connect, r"JSON\.stringify\((\{.*?\})\)"),
        "client": block(connect, "sh"),
        "django": block(send, "python"),
        "terminal": block(send, "sh"),
        "received": block(send, "text").splitlines(),
        "second": piece(text, r"A second replica is the same command with other ports:\s+`([^`]+)`"),
    }


def served(text):
    """Takes step 4 apart: the line that names the configuration, which every terminal needs, and `serve`, which ends at Ctrl-C."""
    first, *checks, last = text.splitlines()
    if not first.startswith("export ") or last != "lockgate serve":
        raise Failed(f"step 4 of {START!r} begins with {first!r} and ends with {last!r}")
    return {"export": first, "checks": "\n".join(checks), "serve": last}


def block(step, language):
    """Returns the one code block of this language."""
    blocks = re.findall(rf"^```{language}\n(.*?)\n```$", step, flags=re.M | re.S)
    if len(blocks) != 1:
        raise Failed(f"the step of the README {step.splitlines()[0]!r} has {len(blocks)} blocks of {language}, expected one")
    return blocks[0]


def piece(text, pattern):
    """Returns the one match of a pattern."""
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise Failed(f"README.md has {len(found)} places like {pattern!r} in {START!r}, expected one")
    return found[0]
