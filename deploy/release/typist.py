"""Types what a README says, in the new Debian of deploy/release/first-hour: script.json beside this file has it.

A terminal is a bash that reads from a pipe. The typist is root until the network of this namespace is up, and then a user
without rights. What fails is told on standard error, with the end of what the terminal showed.
"""

import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = Path("/home/stranger")
PROJECT = HOME / "project"
# For each thing that is waited for; a busy machine is slow.
DEADLINE = 120
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[78])")
# simplejwt's own quick start.
VIEW = """
from rest_framework_simplejwt.views import TokenObtainPairView
urlpatterns.append(path("api/token/", TokenObtainPairView.as_view()))
"""
# What the JavaScript of the README does, with the origin of its page.
PAGE = """
import sys
from websockets.sync.client import connect
url, origin, message = sys.argv[1:]
with connect(url, origin=origin) as socket:
    socket.send(message)
    print(socket.recv(timeout=60))
"""


class Failed(Exception):
    """Something did not happen as the README says."""


def loopback():
    """Brings up the loopback interface of this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        # SIOCSIFFLAGS with IFF_UP, as in ioctl_list(2) and netdevice(7).
        fcntl.ioctl(link, 0x8914, struct.pack("16sH14x", b"lo", 1))


def lay_down_rights():
    status = os.stat(HOME)
    os.setgroups([])
    os.setgid(status.st_gid)
    os.setuid(status.st_uid)


class Terminal:
    """A bash in the project's folder with its virtual environment."""

    def __init__(self, name):
        self.name, self.output = name, HOME / f"{name}.txt"
        self.shell = subprocess.Popen(
            ["/bin/bash", "--norc"], cwd=PROJECT if PROJECT.exists() else HOME, text=True, stdin=subprocess.PIPE, stdout=self.output.open("w"),
            stderr=subprocess.STDOUT, start_new_session=True,
            env={"HOME": str(HOME), "PATH": f"{HOME}/venv/bin:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"})

    def type(self, text):
        """Types lines and does not wait for them."""
        self.shell.stdin.write(f"{text}\n")
        self.shell.stdin.flush()

    def run(self, text):
        """Types lines, waits for their end, and returns what the last of them left on the screen. Each must succeed."""
        before, mark = len(self.screen()), f"done {time.monotonic_ns()}"
        self.type(f"trap 'echo failed {mark}' ERR\n{text}\ntrap - ERR\necho {mark}")
        told = lambda: self.screen()[before:]  # noqa: E731
        self.wait(lambda: f"\n{mark}\n" in f"\n{told()}", text)
        if f"failed {mark}" in told():
            raise Failed(f"{self.name}: a command of\n{text}\nfailed:\n{told()}")
        return told()

    def screen(self):
        return ESCAPES.sub("", self.output.read_text(errors="replace"))

    def wait(self, happened, what):
        """Waits until a function returns something true, and returns it."""
        end = time.monotonic() + DEADLINE
        while not (found := happened()):
            if time.monotonic() > end or self.shell.poll() is not None:
                raise Failed(f"{self.name}: in vain, after {DEADLINE} s or the end of the shell: {what}\n{self.screen()[-3000:]}")
            time.sleep(0.05)
        return found

    def interrupt(self):
        """Presses Ctrl-C and ends the terminal."""
        os.killpg(self.shell.pid, signal.SIGINT)
        self.shell.stdin.close()
        try:
            self.shell.wait(DEADLINE)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"{self.name}: still there {DEADLINE} s after Ctrl-C:\n{self.screen()[-3000:]}") from late


def answers(url):
    """Returns a function that is true once an address answers with 200."""
    def ask():
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
    return ask


class Hour:
    """The state of the stranger's desk."""

    def __init__(self, script):
        self.script, self.terminals = script, []

    def terminal(self, name):
        """Opens a terminal for lockgate."""
        new = Terminal(name)
        self.terminals.append(new)
        new.run(self.script["export"])
        return new

    def project(self):
        """Makes what the README presupposes: a Redis, and a Django project with simplejwt and a user."""
        redis = Terminal("redis")
        redis.type("redis-server --port 6379 --save ''")
        redis.wait(lambda: "Ready to accept connections" in redis.screen(), "redis-server")
        PROJECT.mkdir()
        django = Terminal("django")
        django.run("django-admin startproject project .")
        with (PROJECT / "project/urls.py").open("a") as urls:
            urls.write(VIEW)
        django.run("python manage.py migrate --verbosity 0")
        django.run("DJANGO_SUPERUSER_PASSWORD=wonderland python manage.py createsuperuser --noinput --username alice --email alice@example.org")
        self.terminals += [redis, django]
        self.django = django

    def configure(self):
        """Steps 1 to 3: files."""
        with (PROJECT / "project/settings.py").open("a") as settings:
            settings.write(f"\n{self.script['settings']}\n")
        self.django.run(self.script["secrets"])
        (PROJECT / "lockgate.toml").write_text(f"{self.script['configuration']}\n")
        self.django.type("python manage.py runserver --noreload")
        self.django.wait(lambda: "Quit the server" in self.django.screen(), "runserver")

    def serve(self):
        """Step 4."""
        server = self.terminal("serve")
        told = server.run(self.script["checks"])
        if "\naccepted" not in f"\n{told}":
            raise Failed(f"`token explain` does not say accepted:\n{told}")
        # startproject makes a key that Lockgate warns of; nothing else is.
        warned = [line for line in told.splitlines() if line.startswith("warning") and "startproject" not in line]
        if warned:
            raise Failed(f"the README's configuration is warned of: {warned}")
        server.type(self.script["serve"])
        server.wait(answers("http://127.0.0.1:9000/readyz"), self.script["serve"])
        self.server = server

    def connect(self):
        """Step 5: as the page does, with a token of Django's own view, and from a terminal."""
        request = urllib.request.Request("http://localhost:8000/api/token/", method="POST", headers={"Content-Type": "application/json"},
                                         data=b'{"username": "alice", "password": "wonderland"}')
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            token = json.load(answer)["access"]
        self.message = json.dumps({key: json.loads(value) for key, value in re.findall(r'(\w+): ("[^"]*")', self.script["message"])})
        done = subprocess.run([HOME / "venv/bin/python", "-c", PAGE, self.script["page"] + token, "http://localhost:8000", self.message],
                              capture_output=True, text=True, timeout=DEADLINE)
        expect(done.stdout.strip(), self.script["received"][0], done.stderr)
        self.client = self.terminal("client")
        self.client.type(self.script["client"])
        self.client.wait(lambda: "Connected to" in self.client.screen(), self.script["client"])
        self.client.type(self.message)

    def send(self):
        """Step 6: from Django and from a terminal; then what the socket has received."""
        self.heard(self.client, self.script["received"][:1])
        self.sender = self.terminal("sender")
        (HOME / "shell.py").write_text(f"{self.script['django']}\n")
        self.sender.run(f"python manage.py shell < {HOME}/shell.py")
        self.sender.run(self.script["terminal"])
        self.heard(self.client, self.script["received"])

    def second(self):
        """Starts the second replica, and sends once more to a socket of it."""
        replica = self.terminal("second")
        replica.type(self.script["second"])
        listen = dict(re.findall(r"LOCKGATE_(\w+)__LISTEN=(\S+)", self.script["second"]))
        replica.wait(answers(f"http://{listen['ADMIN']}/readyz"), self.script["second"])
        client = self.terminal("client-of-the-second")
        first = re.search(r"ws://([^/]+)/", self.script["client"])[1]
        client.type(self.script["client"].replace(first, listen["SERVER"]))
        client.wait(lambda: "Connected to" in client.screen(), "the second replica's socket")
        self.sender.run(self.script["terminal"])
        self.heard(client, self.script["received"][-1:])
        self.heard(self.client, [*self.script["received"], self.script["received"][-1]])
        self.server.interrupt()

    def heard(self, client, expected):
        """Waits until a client of the terminal has received so much, and compares."""
        received = lambda: re.findall(r"< (\{.*\})", client.screen())  # noqa: E731
        client.wait(lambda: len(received()) >= len(expected), f"{len(expected)} messages")
        expect(received(), expected, client.screen())


def expect(found, wanted, told):
    if found != wanted:
        raise Failed(f"received {found}, and the README says {wanted}\n{told[-3000:]}")


STEPS = {
    "what the README presupposes: Redis, a Django project, alice": Hour.project,
    "the README's steps 1 to 3: settings, keys, lockgate.toml": Hour.configure,
    "step 4: checked, a token explained, served": Hour.serve,
    "step 5: a socket by a page's token, and one from a terminal": Hour.connect,
    "step 6: sent from Django and from a terminal, received as the README says": Hour.send,
    "a second replica, and Ctrl-C": Hour.second,
}


def main():
    loopback()
    lay_down_rights()
    hour = Hour(json.loads((HERE / "script.json").read_text()))
    for name, play in STEPS.items():
        began = time.monotonic()
        try:
            play(hour)
        except (Failed, OSError, subprocess.SubprocessError) as problem:
            print(f"{name}: {problem}", file=sys.stderr)
            for terminal in hour.terminals:
                print(f"--- the terminal {terminal.name}:\n{textwrap.shorten(terminal.screen()[-400:], 400)}", file=sys.stderr)
            return 1
        print(f"  {time.monotonic() - began:5.1f} s  {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
