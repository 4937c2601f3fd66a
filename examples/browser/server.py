"""The site of the example: a page, the client module, and access tokens. Python's standard library is enough.

    python3 server.py [--port 8080]

It stands for your own back end. The person who opens the page is the user that the address names, without a password, so it
answers this machine alone. The first start makes `signing-key` and `users.sqlite3`, which lockgate.toml names.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

HERE = Path(__file__).resolve().parent
KEY = HERE / "signing-key"
USERS = HERE / "users.sqlite3"
FILES = {
    "/": (HERE / "index.html", "text/html; charset=utf-8"),
    "/lockgate.js": (HERE / "../../clients/js/index.js", "text/javascript"),
}
# Short, so that you can watch how the page refreshes them.
LIFETIME = 60
NAMES = {"alice": 1, "bob": 2}


def prepare():
    """Makes the key and the users, unless they are there."""
    if not KEY.exists():
        file = os.open(KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "w") as key:
            key.write(secrets.token_hex(32))
    with sqlite3.connect(USERS) as users:
        users.execute("CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY, name TEXT, is_active BOOLEAN)")
        users.executemany("INSERT OR IGNORE INTO users VALUES (?, ?, 1)", [(id, name) for name, id in NAMES.items()])


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(user_id):
    """Returns an access token as djangorestframework-simplejwt makes it."""
    now = int(time.time())
    header = {"alg": "HS256", "typ": "JWT"}
    claims = {"token_type": "access", "user_id": str(user_id), "jti": uuid.uuid4().hex, "iat": now, "exp": now + LIFETIME}
    signed = ".".join(encoded(json.dumps(part).encode()) for part in [header, claims])
    signature = hmac.new(KEY.read_text().strip().encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{encoded(signature)}"


class Site(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        # A page of another site could have its name resolved to this machine, and read the tokens.
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
            return self.answer(421, b"for this machine alone", "text/plain")
        if url.path == "/token":
            user = NAMES.get(parse_qs(url.query).get("user", [""])[0])
            if user is None:
                return self.answer(401, b"no such user", "text/plain")
            return self.answer(200, json.dumps({"access": token(user)}).encode(), "application/json")
        if url.path not in FILES:
            return self.answer(404, b"not here", "text/plain")
        path, kind = FILES[url.path]
        return self.answer(200, path.read_bytes(), kind)

    def answer(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    arguments = argparse.ArgumentParser(description="The site of the example.")
    arguments.add_argument("--port", type=int, default=8080)
    port = arguments.parse_args().port
    prepare()
    with ThreadingHTTPServer(("127.0.0.1", port), Site) as site:
        print(f"http://127.0.0.1:{port}/?user=alice and http://127.0.0.1:{port}/?user=bob", flush=True)
        try:
            site.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
