"""A Django project around the app; each test puts its own settings on top."""

SECRET_KEY = "a secret key for tests, which protects nothing"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "rest_framework",
    "rest_framework_simplejwt",
    "lockgate",
    "tests",
]
ROOT_URLCONF = "tests.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
# Hashing a password properly takes a quarter of a second; the second one is for a hash that a login renews.
PASSWORD_HASHERS = [f"django.contrib.auth.hashers.{name}PasswordHasher" for name in ["MD5", "PBKDF2"]]
REST_FRAMEWORK = {"DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework_simplejwt.authentication.JWTAuthentication"]}
# The tests name the Redis that they started; until then this port is closed.
LOCKGATE = {"TENANT": "acme", "REDIS_URL": "redis://127.0.0.1:1/0"}
