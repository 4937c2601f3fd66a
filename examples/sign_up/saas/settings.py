"""A site whose customers sign up: each gets a host of its own for its sockets."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = "only for this example; no token is signed with it"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "saas.urls"
INSTALLED_APPS = ["customers"]
MIDDLEWARE = []
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [BASE_DIR / "saas"]}]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": BASE_DIR / "db.sqlite3"}}

# The pages that open sockets, and the sockets of a customer.
SITE_ORIGIN = os.environ.get("SITE_ORIGIN", "http://127.0.0.1:8000")
SOCKET_HOST = "{name}.localhost"
SOCKET_URL = os.environ.get("SOCKET_URL", "ws://{host}:8001")

LOCKGATE_API = os.environ.get("LOCKGATE_API", "http://127.0.0.1:9001")
LOCKGATE_KEY = (BASE_DIR / "site-key").read_text().strip()
