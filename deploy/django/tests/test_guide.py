"""docs/moving-from-channels.md: what it shows is valid, and its table of settings is complete."""

import re
import subprocess
import tempfile
from pathlib import Path

from django.test import SimpleTestCase

from lockgate import DEFAULTS

from .test_config import BINARY, ROOT, SQLITE, VALUES, Printed

GUIDE = (ROOT / "docs/moving-from-channels.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


class Guide(SimpleTestCase):
    def test_its_configuration_is_valid(self):
        if not BINARY.exists():
            self.skipTest(f"no {BINARY}: run cargo build, or name it in LOCKGATE_BINARY")
        settings = {"INSTALLED_APPS": []}
        exec(next(block for block in blocks("python") if "CHANNEL_LAYERS" in block), settings)
        route, origins, whole, worker = blocks("toml")
        printed = Printed(SQLITE, None, **{name: settings[name] for name in ["CHANNEL_LAYERS", "SIMPLE_JWT", "LOCKGATE"]})
        self.assertEqual(printed.lost, "")
        text, replaced = re.subn("^# origins = .*\n", origins, printed.text, flags=re.MULTILINE)
        self.assertEqual(replaced, 1)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "tenants.d").mkdir()
            Path(folder, "tenants.d/acme.toml").write_text(f"{text}\n{route}\n{worker.replace('ws/chat/', 'ws/work/')}")
            Path(folder, "lockgate.toml").write_text(whole)
            command = [str(BINARY), "config", "check", "--config", str(Path(folder, "lockgate.toml"))]
            environment = {"ACME_SIGNING_KEY": VALUES["SIGNING_KEY"]}
            check = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.assertEqual((check.returncode, check.stderr), (0, ""))

    def test_its_python_is_python(self):
        self.assertGreater(len(blocks("python")), 4)
        for block in blocks("python"):
            compile(block, "the guide", "exec")

    def test_its_table_has_every_setting(self):
        section = GUIDE[GUIDE.index("| key of `LOCKGATE` |") :]
        rows = section[: section.index("\n\n")].splitlines()[2:]
        named = [name for row in rows for name in re.findall("`([A-Z_]+)`", row.split("|")[1])]
        self.assertEqual(sorted(named), sorted(DEFAULTS))
