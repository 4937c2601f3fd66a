"""`manage.py lockgate_config`: every mapping, and that the gateway's own check accepts what it prints."""

import io
import os
import re
import ssl
import subprocess
import tempfile
import tomllib
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pymysql
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db.utils import ConnectionHandler
from django.test import SimpleTestCase, override_settings
from rest_framework_simplejwt.authentication import JWTAuthentication, JWTStatelessUserAuthentication
from rest_framework_simplejwt.tokens import AccessToken

from tests.models import Member

pymysql.version_info = (2, 2, 7, "final", 0)
pymysql.install_as_MySQLdb()

ROOT = Path(__file__).resolve().parents[3]
BINARY = Path(os.environ.get("LOCKGATE_BINARY", Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/lockgate"))
PUBSUB, CORE = "channels_redis.pubsub.RedisPubSubChannelLayer", "channels_redis.core.RedisChannelLayer"
RECORDING = "lockgate.layers.RedisPubSubChannelLayer"
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/my db.sqlite3"}
POSTGRES = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": "shop",
    "USER": "owner",
    "PASSWORD": "hunter2",
    "HOST": "db.example.com",
}
# What stands for the secrets while the output is checked.
VALUES = {
    "SIGNING_KEY": "0123456789abcdef" * 4,
    "DATABASE_URL": "postgres://u:p@127.0.0.1/x",
    "REDIS_URL": "redis://:p@127.0.0.1:6379/0",
    "LAYER_HOST": "redis://:p@127.0.0.1:6379/0",
    "LAYER_KEY": "a key of the layer",
}
CERTIFICATES = ROOT / "tests/certificates"
# What docs/django-schemas.md asks of a project.
OF_SCHEMAS = {"LOCKGATE": {"TENANT": lambda: "acme"}}
EXTENDING = "tests.test_config.OwnAccessToken"


class OwnAccessToken(AccessToken):
    token_type = "socket"


class OwnAuthentication(JWTAuthentication):
    pass


class OwnStateless(JWTStatelessUserAuthentication):
    pass


class Printed:
    def __init__(self, database=SQLITE, tenant="acme", **settings):
        out, err = io.StringIO(), io.StringIO()
        settings = {"LOCKGATE": {}, "ALLOWED_HOSTS": ["example.com"], "CHANNEL_LAYERS": layer(), **settings}
        connections = ConnectionHandler({"default": database})
        with override_settings(**settings), mock.patch("lockgate.management.commands.lockgate_config.connections", connections):
            call_command("lockgate_config", tenant=tenant, stdout=out, stderr=err, no_color=True)
        self.text, self.lost = out.getvalue(), err.getvalue()
        [(name, self.tenant)] = tomllib.loads(self.text)["tenants"].items()
        assert name == tenant or tenant is None, name
        comments = re.findall("# (not mapped: .*)", self.text)
        assert comments == self.lost.splitlines(), (comments, self.lost)


def layer(backend=PUBSUB, **conf):
    return {"default": {"BACKEND": backend, "CONFIG": conf}}


def pem(key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


class Case(SimpleTestCase):
    def printed(self, *args, lost=(), **kwargs):
        """The tenant's table; the gateway accepts it, and exactly `lost` could not be mapped."""
        printed = Printed(*args, **kwargs)
        told = printed.lost.splitlines()
        self.assertEqual(len(told), len(lost), told)
        for line, part in zip(told, lost):
            self.assertIn(part, line)
        self.check(printed)
        self.text = printed.text
        return printed.tenant

    def check(self, printed):
        if not BINARY.exists():
            self.skipTest(f"no {BINARY}: run cargo build, or name it in LOCKGATE_BINARY")
        # A variable stands for each secret, whichever it is.
        names = re.findall(r'env = "(ACME_(\w+?)(?:_\d+)?)"', printed.text)
        environment = {name: VALUES[kind] for name, kind in names}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "acme.toml")
            file.write_text(printed.text)
            for name in re.findall(r'file = "([^"]+)"', printed.text):
                if not Path(name).is_absolute():
                    Path(folder, name).write_text(pem(rsa.generate_private_key(65537, 2048)))
            command = [str(BINARY), "config", "check", "--config", str(file)]
            check = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.assertEqual(check.returncode, 0, check.stderr + printed.text)


class Names(Case):
    def test_a_plain_project(self):
        self.printed(ALLOWED_HOSTS=["Shop.example.com", ".example.org", "127.0.0.1", "[::1]"])
        self.assertEqual(
            self.text,
            """\
[tenants.acme]
# "*." stands for one label here; Django's "." for any number of them.
hosts = ["shop.example.com", "example.org", "*.example.org", "127.0.0.1", "[::1]"]
# origins = ["https://app.example.com"]  # pages that may connect; default: those of the request's own host

[tenants.acme.redis]
url = "redis://localhost:6379/0"

[tenants.acme.token]
algorithm = "HS256"
signing_key = { env = "ACME_SIGNING_KEY" }  # SECRET_KEY

[tenants.acme.users]
database = "sqlite:///srv/my%20db.sqlite3?mode=ro"

[tenants.acme.layer]
kind = "pubsub"

# Django's settings do not say what paths do: add [[tenants.acme.routes]].
""",
        )

    def test_hosts(self):
        self.assertEqual(self.printed(ALLOWED_HOSTS=["*"])["hosts"], ["*"])
        self.assertNotIn("hosts", self.printed(ALLOWED_HOSTS=[], CORS_ALLOWED_ORIGINS=["https://shop.example.com"]))
        self.assertIn('# origins = ["https://shop.example.com"]', self.text)

    def test_the_tenant_comes_from_the_settings_or_the_command_line(self):
        conf = {"TENANT": "acme-2", "REDIS_URL": "redis://:hunter2@10.0.0.1/3"}
        printed = Printed(tenant="acme-2", LOCKGATE=conf)
        self.assertIn('env = "ACME_2_SIGNING_KEY"', printed.text)
        self.assertIn('env = "ACME_2_REDIS_URL" }  # redis://:PASSWORD@10.0.0.1/3', printed.text)
        with override_settings(LOCKGATE=conf, ALLOWED_HOSTS=[], CHANNEL_LAYERS={}):
            self.assertIn("[tenants.acme-2]", call_command("lockgate_config", stdout=io.StringIO(), stderr=io.StringIO()))
            for name in ["Acme", "-", "a.b"]:
                with self.assertRaises(CommandError):
                    call_command("lockgate_config", tenant=name)
        with override_settings(), self.assertRaises(CommandError):
            from django.conf import settings

            del settings.LOCKGATE
            call_command("lockgate_config")

    def test_what_belongs_to_the_deployment_is_a_comment(self):
        conf = {"DENYLIST_URL": "redis://:hunter2@x/0", "KEEP": timedelta(days=7), "STALE_TTL": 7200, "ON_EXPIRY": "keep"}
        acme = self.printed(LOCKGATE=conf)
        self.assertEqual((acme["users"]["stale_ttl"], acme["token"]["on_expiry"]), ("7200s", "keep"))
        self.assertIn("# DENYLIST_URL is the deployment's: [denylist] redis.", self.text)
        self.assertIn('[denylist] keep = "604800s"', self.text)
        self.assertNotIn("hunter2", self.text)


class Tokens(Case):
    def token(self, lost=(), **settings):
        return self.printed(SIMPLE_JWT=settings, lost=lost)["token"]

    def test_shared_keys(self):
        for algorithm in ["HS256", "HS384", "HS512"]:
            token = self.token(ALGORITHM=algorithm, SIGNING_KEY="hunter2" * 9)
            self.assertEqual(token, {"algorithm": algorithm, "signing_key": {"env": "ACME_SIGNING_KEY"}})
            self.assertIn('# SIMPLE_JWT["SIGNING_KEY"]', self.text)
            self.assertNotIn("hunter2", self.text)

    def test_public_keys(self):
        key = rsa.generate_private_key(65537, 2048)
        for algorithm, public in [("RS256", pem(key)), ("PS512", pem(key)), ("ES256", pem(ec.generate_private_key(ec.SECP256R1())))]:
            token = self.token(ALGORITHM=algorithm, VERIFYING_KEY=public, SIGNING_KEY="hunter2")
            self.assertEqual(token, {"algorithm": algorithm, "verifying_key": public})
            self.assertNotIn("hunter2", self.text)

    def test_public_keys_in_the_form_of_openssh(self):
        """They became a file, with the words that it is the key of SIGNING_KEY."""
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        for algorithm, key in [("RS256", rsa.generate_private_key(65537, 2048)), ("ES256", ec.generate_private_key(ec.SECP256R1()))]:
            public = key.public_key().public_bytes(*form).decode()
            token = self.token(ALGORITHM=algorithm, VERIFYING_KEY=public)
            self.assertEqual(token, {"algorithm": algorithm, "verifying_key": public})

    def test_a_public_key_that_is_not_there_is_a_file(self):
        private = key_text(rsa.generate_private_key(65537, 2048))
        for settings in [{"VERIFYING_KEY": ""}, {"VERIFYING_KEY": private}, {"SIGNING_KEY": private}]:
            token = self.token(ALGORITHM="RS256", **settings)
            self.assertEqual(token["verifying_key"], {"file": "acme-verifying-key.pem"})
            self.assertNotIn("PRIVATE", self.text)

    def test_key_sets(self):
        url = "https://login.example.com/jwks.json"
        self.assertEqual(self.token(ALGORITHM="RS256", JWK_URL=url, VERIFYING_KEY="x"), {"algorithm": "RS256", "jwk_url": url})

    def test_algorithms_that_lockgate_lacks(self):
        printed = Printed(SIMPLE_JWT={"ALGORITHM": "ES256K", "VERIFYING_KEY": pem(ec.generate_private_key(ec.SECP256K1()))})
        self.assertIn('not mapped: SIMPLE_JWT["ALGORITHM"] ES256K', printed.lost)
        self.assertNotIn("algorithm", printed.tenant["token"])

    def test_claims(self):
        token = self.token(
            USER_ID_CLAIM="sub", JTI_CLAIM="id", TOKEN_TYPE_CLAIM="typ", AUDIENCE=("a", "b"), ISSUER="me",
            LEEWAY=timedelta(seconds=1.5), CHECK_USER_IS_ACTIVE=False,
        )  # fmt: skip
        self.assertEqual(
            without_key(token),
            {"user_id_claim": "sub", "jti_claim": "id", "token_type_claim": "typ", "audience": ["a", "b"], "issuer": "me",
             "leeway": "1500ms", "check_user_is_active": False},
        )  # fmt: skip
        token = self.token(JTI_CLAIM=None, TOKEN_TYPE_CLAIM=None, AUDIENCE="a", LEEWAY=10, CHECK_REVOKE_TOKEN=True, REVOKE_TOKEN_CLAIM="h")
        self.assertEqual(
            without_key(token),
            {"jti_claim": False, "token_type_claim": False, "audience": "a", "leeway": "10s", "check_revoke_token": True,
             "revoke_token_claim": "h"},
        )  # fmt: skip

    def test_an_empty_audience_is_told(self):
        self.assertEqual(without_key(self.token(AUDIENCE=[], ISSUER="", lost=['"AUDIENCE"] is empty', '"ISSUER"] is empty'])), {})

    def test_the_cookie_of_a_project(self):
        sources = ["query", "header", "subprotocol", "cookie"]
        for settings, jwt in [
            ({"REST_AUTH": {"USE_JWT": True, "JWT_AUTH_COOKIE": "my-auth"}}, {}),
            ({"JWT_AUTH_COOKIE": "my-auth"}, {}),
            ({}, {"AUTH_COOKIE": "my-auth"}),
        ]:
            token = self.printed(SIMPLE_JWT=jwt, **settings)["token"]
            self.assertEqual(without_key(token), {"sources": sources, "cookie": "my-auth"})
        self.assertEqual(without_key(self.printed(REST_AUTH={"JWT_AUTH_COOKIE": None})["token"]), {})

    def test_token_classes(self):
        package = "rest_framework_simplejwt.tokens"
        token = self.token(AUTH_TOKEN_CLASSES=(f"{package}.AccessToken", f"{package}.SlidingToken"))
        self.assertEqual(token["token_types"], ["access", "sliding"])
        token = self.token(AUTH_TOKEN_CLASSES=(f"{package}.UntypedToken",))
        self.assertEqual(token["token_type_claim"], False)
        token = self.token(AUTH_TOKEN_CLASSES=(EXTENDING,), lost=["OwnAccessToken"])
        self.assertEqual(token["token_types"], ["socket"])

    def test_what_runs_in_python_is_not_mapped(self):
        self.token(
            JSON_ENCODER="json.JSONEncoder", TOKEN_OBTAIN_SERIALIZER="x.Y", USER_AUTHENTICATION_RULE="os.getcwd", TOKEN_USER_CLASS="x.Z",
            lost=["JSON_ENCODER", "TOKEN_OBTAIN_SERIALIZER", "USER_AUTHENTICATION_RULE", "TOKEN_USER_CLASS"],
        )  # fmt: skip
        classes = [
            "rest_framework.authentication.SessionAuthentication",
            "rest_framework_simplejwt.authentication.JWTAuthentication",
            "rest_framework_simplejwt.authentication.JWTStatelessUserAuthentication",
            "tests.test_config.OwnAuthentication",
        ]
        lost = ["JWTStatelessUserAuthentication: users come from the database", "OwnAuthentication"]
        acme = self.printed(REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": classes}, lost=lost)
        self.assertIn("database", acme["users"])


class StatelessUsers(Case):
    PACKAGE = "rest_framework_simplejwt.authentication"

    def stateless(self, *others, lost=(), first=f"{PACKAGE}.JWTStatelessUserAuthentication", **jwt):
        classes = ["rest_framework.authentication.SessionAuthentication", first, *others]
        return self.printed(REST_FRAMEWORK={"DEFAULT_AUTHENTICATION_CLASSES": classes}, SIMPLE_JWT=jwt, lost=lost)

    def test_the_claims_are_the_user(self):
        for name in ["JWTStatelessUserAuthentication", "JWTTokenUserAuthentication"]:
            acme = self.stateless(first=f"{self.PACKAGE}.{name}")
            self.assertEqual(acme["users"], {"source": "claims", "id_type": "text"})
            self.assertEqual(without_key(acme["token"]), {})

    def test_settings_of_records_are_left_out(self):
        acme = self.stateless(
            CHECK_REVOKE_TOKEN=True, REVOKE_TOKEN_CLAIM="h", CHECK_USER_IS_ACTIVE=True, USER_ID_FIELD="no_such_field", USER_ID_CLAIM="sub"
        )
        self.assertEqual(without_key(acme["token"]), {"user_id_claim": "sub"})
        self.assertEqual(acme["users"], {"source": "claims", "id_type": "text"})
        self.assertNotIn("DATABASE_URL", self.text)

    def test_what_runs_in_python_is_not_mapped(self):
        lost = ["TOKEN_USER_CLASS", "JWTAuthentication: the claims are the user", "OwnStateless: Lockgate does what JWTStateless"]
        self.stateless(f"{self.PACKAGE}.JWTAuthentication", "tests.test_config.OwnStateless", TOKEN_USER_CLASS="x.Z", lost=lost)


class Users(Case):
    def users(self, model, database=SQLITE, lost=(), settings={}, **jwt):
        acme = self.printed(database, AUTH_USER_MODEL=model, SIMPLE_JWT=jwt, lost=lost, **settings)
        return acme["users"] | ({"field": acme["token"]["user_id_field"]} if "user_id_field" in acme["token"] else {})

    def test_djangos_own_user(self):
        for field in ["id", "pk"]:
            self.assertEqual(set(self.users("auth.User", USER_ID_FIELD=field)), {"database"})
        users = self.users("auth.User", USER_ID_FIELD="username")
        self.assertEqual((users["field"], users["id_type"]), ("username", "text"))

    def test_a_table_with_the_same_columns(self):
        users = self.users("tests.Member", CHECK_REVOKE_TOKEN=True)
        self.assertEqual((users["table"], users["id_type"]), ("tests_member", "uuid"))
        self.assertNotIn("query", users)

    def test_another_key_and_no_is_active(self):
        users = self.users("tests.Customer", USER_ID_FIELD="number")
        self.assertEqual(users["id_type"], "text")
        self.assertNotIn("field", users)
        self.assertEqual(
            users["query"],
            'SELECT "our-customers"."number" AS "id", TRUE AS "is_active" FROM "our-customers" WHERE "our-customers"."number" IN (:user_ids)',
        )

    def test_other_names_of_columns(self):
        table = '"tests_renamed"'
        users = self.users("tests.Renamed", USER_ID_FIELD="code", CHECK_REVOKE_TOKEN=True)
        self.assertEqual((users["field"], users["id_type"]), ("short_code", "text"))
        self.assertEqual(
            users["query"],
            f'SELECT {table}."id" AS "id", {table}."short_code" AS "short_code", {table}."login" AS "username", '
            f'{table}."enabled" AS "is_active", {table}."password" AS "password" FROM {table} WHERE {table}."short_code" IN (:user_ids)',
        )

    def test_two_tables(self):
        users = self.users("tests.Employee", USER_ID_FIELD="pk")
        child, parent = '"tests_employee"', '"tests_member"'
        self.assertEqual(
            users["query"],
            f'SELECT {child}."member_ptr_id" AS "id", {parent}."email" AS "email", {parent}."is_active" AS "is_active" '
            f'FROM {child} INNER JOIN {parent} ON ({child}."member_ptr_id" = {parent}."id") WHERE {child}."member_ptr_id" IN (:user_ids)',
        )
        self.assertEqual(users["id_type"], "uuid")

    def test_tables_of_a_schema(self):
        """django-tenants finds tables by a search path, which Lockgate does not set."""
        for schema, model, expected in [
            ("acme", "auth.User", {"table": "acme.auth_user"}),
            ("acme", "tests.Member", {"table": "acme.tests_member"}),
            # A name that needs quotes is in a query.
            ("acme-eu", "auth.User", {"query": ' FROM "acme-eu"."auth_user" WHERE "auth_user"."id" IN (:user_ids)'}),
            ("acme", "tests.Employee", {"query": ' FROM "acme"."tests_employee" INNER JOIN "acme"."tests_member" ON ("tests_employee".'}),
        ]:
            with in_schema(schema, ["a.example.com"]):
                users = self.users(model, POSTGRES, settings=OF_SCHEMAS, USER_ID_FIELD="id" if model == "auth.User" else "pk")
            for key, part in expected.items():
                self.assertIn(part, users[key])
            self.assertEqual(("table" in users, "query" in users), ("table" in expected, "query" in expected))
            self.assertIn('hosts = ["a.example.com"]\n', self.text)
            self.assertIn(f'namespace = "{schema}."\n', self.text)
            self.assertIn(f'# claims = {{ schema = "{schema}" }}', self.text)

    def test_what_each_schema_needs_is_told(self):
        """All of these were silent: a project noticed them by sockets that stayed open, or by hosts of another customer."""
        recording = layer(RECORDING, tenants={"acme.": "acme"})
        for conf, lost in [
            ({"LOCKGATE": {"TENANT": "shop"}}, ['LOCKGATE["TENANT"] is no function']),
            ({"CHANNEL_LAYERS": layer(RECORDING)}, ['CONFIG has no "tenants"']),
            ({"CHANNEL_LAYERS": recording}, []),
            ({"TENANT_SUBFOLDER_PREFIX": "clients"}, ["TENANT_SUBFOLDER_PREFIX clients: Lockgate knows a tenant by its host"]),
        ]:
            with self.subTest(lost=lost), in_schema("acme", ["a.example.com"]):
                self.users("auth.User", POSTGRES, settings=OF_SCHEMAS | conf, lost=lost)
                self.assertEqual('hosts = ["a.example.com"]\n' in self.text, "TENANT_SUBFOLDER_PREFIX" not in conf)
        with in_schema("acme", []):
            self.users("auth.User", POSTGRES, settings=OF_SCHEMAS, lost=["the schema acme has no domain: write hosts"])
            self.assertNotIn("\nhosts = ", self.text)

    def test_users_that_schemas_share_need_a_function(self):
        lost = ['the users in public are those of other schemas too: set LOCKGATE["USER_TENANTS"]']
        named = OF_SCHEMAS["LOCKGATE"] | {"USER_TENANTS": lambda user: ["acme"]}
        for settings, lost in [(OF_SCHEMAS, lost), (OF_SCHEMAS | {"LOCKGATE": named}, [])]:
            with in_schema("acme", ["a.example.com"], holding="public"):
                users = self.users("auth.User", POSTGRES, settings=settings, lost=lost)
            self.assertEqual(users["table"], "public.auth_user")

    def test_the_public_schema_says_that_others_have_files_of_their_own(self):
        with in_schema("public", []):
            told = "the schemas of companies.Company: this is the public one. Each other schema has a file of its own: manage.py tenant_command"
            self.users("auth.User", POSTGRES, settings={"TENANT_MODEL": "companies.Company"}, lost=[told])
            self.assertIn('hosts = ["example.com"]\n', self.text)
            nameless = {"LOCKGATE": {"TENANT": lambda: None}}
            with self.assertRaisesMessage(CommandError, "not beginning with -; Each other schema has a file of its own"):
                Printed(POSTGRES, tenant=None, **nameless)

    def test_the_beginning_of_secrets_and_groups(self):
        with override_settings(LOCKGATE={"TENANT": "acme"}, ALLOWED_HOSTS=[], CHANNEL_LAYERS=layer()):
            text = call_command("lockgate_config", namespace="shop.", secrets="our-shop", stdout=io.StringIO(), stderr=io.StringIO())
            self.assertIn('env = "OUR_SHOP_SIGNING_KEY"', text)
            self.assertIn('namespace = "shop."', text)
            for bad in ["shop:", "a b", "x__group__", "a" * 65, "caf\u00e9.", "a\n"]:
                with self.assertRaises(CommandError):
                    call_command("lockgate_config", namespace=bad, stdout=io.StringIO())

    def test_an_id_in_the_table_of_a_parent(self):
        users = self.users("tests.Staff", USER_ID_FIELD="id")
        table = '"tests_staff"'
        self.assertEqual(
            users["query"],
            f'SELECT {table}."party_ptr_id" AS "id", {table}."username" AS "username", {table}."is_active" AS "is_active" '
            f'FROM {table} WHERE {table}."party_ptr_id" IN (:user_ids)',
        )

    def test_a_number_that_is_not_the_key(self):
        """PostgreSQL compares no number with a text."""
        for database, condition in [(SQLITE, '"badge" IN (:user_ids)'), (POSTGRES, '"badge" = ANY (ARRAY[:user_ids]::integer[])')]:
            users = self.users("tests.Staff", database, USER_ID_FIELD="badge")
            self.assertEqual(users["field"], "badge")
            self.assertTrue(users["query"].endswith(condition), users["query"])

    def test_another_field_of_the_table_auth_user(self):
        with in_table(Member, "auth_user"):
            users = self.users("tests.Member", USER_ID_FIELD="last_login", lost=["DateTimeField last_login"])
        self.assertIn('WHERE "auth_user"."last_login" IN', users["query"])

    def test_rows_that_the_manager_leaves_out_are_told(self):
        with mock.patch.object(User, "objects", User.objects.exclude(username="gone")):
            self.users("auth.User", lost=["User.objects leaves users out"])

    def test_a_dot_in_the_name_of_a_table_is_no_schema(self):
        with in_table(User, "shop.user"):
            users = self.users("auth.User")
        self.assertIn('"shop.user"."username" AS "username"', users["query"])

    def test_activity_that_is_computed_is_not_mapped(self):
        users = self.users("tests.Computed", lost=["is_active: it is computed in Python"])
        self.assertIn("TRUE AS", users["query"])

    def test_a_field_that_is_none(self):
        with self.assertRaisesMessage(CommandError, "USER_ID_FIELD"):
            Printed(SIMPLE_JWT={"USER_ID_FIELD": "nickname"})

    def test_databases(self):
        mysql = {**POSTGRES, "ENGINE": "django.db.backends.mysql"}
        for database, url, lost in [
            (POSTGRES, "postgres://USER:PASSWORD@db.example.com:5432/shop", []),
            ({**POSTGRES, "HOST": "::1", "PORT": "5433"}, "postgres://USER:PASSWORD@[::1]:5433/shop", []),
            ({**POSTGRES, "HOST": ""}, "postgres://USER:PASSWORD@localhost/shop?host=%2Fvar%2Frun%2Fpostgresql", []),
            ({**POSTGRES, "HOST": "/run/pg", "PORT": 5433}, "postgres://USER:PASSWORD@localhost:5433/shop?host=%2Frun%2Fpg", []),
            (
                {**POSTGRES, "OPTIONS": {"sslmode": "verify-full", "sslrootcert": "/ca.pem", "pool": True, "service": "x"}},
                "postgres://USER:PASSWORD@db.example.com:5432/shop?sslmode=verify-full&sslrootcert=%2Fca.pem",
                ['OPTIONS["service"]'],
            ),
            (mysql, "mysql://USER:PASSWORD@db.example.com:3306/shop", []),
            ({**mysql, "HOST": "/run/mysqld.sock"}, "mysql://USER:PASSWORD@localhost/shop?socket=%2Frun%2Fmysqld.sock", []),
            (
                {**mysql, "OPTIONS": {"ssl": {"ca": "/ca.pem"}, "charset": "utf8mb4", "read_default_file": "/my.cnf"}},
                "mysql://USER:PASSWORD@db.example.com:3306/shop?ssl-mode=VERIFY_CA&ssl-ca=%2Fca.pem",
                ['OPTIONS["read_default_file"]'],
            ),
        ]:
            with self.subTest(database=database):
                self.assertEqual(self.printed(database, lost=lost)["users"], {"database": {"env": "ACME_DATABASE_URL"}})
                self.assertIn(f'{{ env = "ACME_DATABASE_URL" }}  # {url}, of a role that may only read\n', self.text)
                self.assertNotIn("hunter2", self.text)
                self.assertNotIn("owner", self.text)

    def test_databases_that_nobody_else_can_read(self):
        memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        self.assertIn("not mapped: DATABASES: a database in memory", Printed(memory).lost)

    def test_quotes_are_those_of_the_database(self):
        users = self.users("tests.Customer", {**POSTGRES, "ENGINE": "django.db.backends.mysql"}, USER_ID_FIELD="number")
        self.assertIn("SELECT `our-customers`.`number` AS `id`, TRUE AS `is_active` FROM", users["query"])
        users = self.users("tests.Customer", POSTGRES, USER_ID_FIELD="number")
        self.assertIn('SELECT "our-customers"."number" AS "id"', users["query"])


class Layers(Case):
    def hosts(self, *hosts, lost=()):
        """As printed: a text, or (variable, comment)."""
        acme = self.printed(CHANNEL_LAYERS=layer(hosts=[*hosts]), LOCKGATE={"REDIS_URL": "redis://other"}, lost=lost)
        self.assertNotIn("hunter2", self.text)
        comments = dict(re.findall(r'env = "(\w+)" },?  # (\S+)', self.text))
        return [host if isinstance(host, str) else (host["env"], comments[host["env"]]) for host in acme["layer"]["hosts"]]

    def test_every_form_of_a_host(self):
        sentinels = {"sentinels": [("s1", 26379), ("::1", 26380)], "master_name": "main"}
        for host, url in [
            ("redis://h", "redis://h/0"),
            ("redis://h:6380/2", "redis://h:6380/2"),
            ("rediss://h?db=4&socket_timeout=3", "rediss://h/4"),
            (("h", 6380), "redis://h:6380/0"),
            (["::1", 6380], "redis://[::1]:6380/0"),
            ({"address": "redis://h:1/5", "db": 3, "socket_timeout": None}, "redis://h:1/5"),
            ({"host": "h"}, "redis://h:6379/0"),
            ({"host": "h", "port": 1, "db": 3, "retry_on_timeout": True}, "redis://h:1/3"),
            ({"host": "h", "ssl": True}, "rediss://h:6379/0"),
            (sentinels, "redis+sentinel://s1:26379,[::1]:26380/main/0"),
            ({**sentinels, "db": 2, "ssl": True, "sentinel_kwargs": {"ssl": True}}, "rediss+sentinel://s1:26379,[::1]:26380/main/2"),
        ]:
            with self.subTest(host=host):
                self.assertEqual(self.hosts(host), [url])

    def test_a_password_is_a_variable(self):
        sentinels = {"sentinels": [("s", 1)], "master_name": "m", "sentinel_kwargs": {"username": "u", "password": "hunter2"}}
        for host, comment in [
            ("redis://:hunter2@h/1", "redis://:PASSWORD@h/1"),
            ("redis://owner:hunter2@h", "redis://USER:PASSWORD@h/0"),
            ({"address": "rediss://h", "password": "hunter2"}, "rediss://:PASSWORD@h/0"),
            ({"host": "h", "username": "owner", "password": "hunter2"}, "redis://USER:PASSWORD@h:6379/0"),
            (sentinels, "redis+sentinel://s:1/m/0?sentinel_username=USERNAME&sentinel_password=PASSWORD"),
            ({**sentinels, "password": "hunter2"}, "redis+sentinel://:PASSWORD@s:1/m/0?sentinel_username=USERNAME&sentinel_password=PASSWORD"),
        ]:
            with self.subTest(host=host):
                self.assertEqual(self.hosts(host), [("ACME_LAYER_HOST_0", comment)])

    def test_several_hosts_stay_in_their_order(self):
        hosts = self.hosts("redis://b", "redis://:hunter2@a", ("c", 1))
        self.assertEqual(hosts, ["redis://b/0", ("ACME_LAYER_HOST_1", "redis://:PASSWORD@a/0"), "redis://c:1/0"])

    def test_who_is_trusted(self):
        """`ca` and `verify` were named as not mapped, although the gateway has them."""
        ca, other = str(CERTIFICATES / "ca.pem"), (CERTIFICATES / "other.pem").read_text()
        named = {"sentinels": [("s", 1)], "master_name": "m", "ssl": True, "sentinel_kwargs": {"ssl": True, "ssl_ca_certs": ca}}
        for hosts, expected in [
            ([f"rediss://h?ssl_ca_certs={ca}"], {"ca": [{"file": ca}]}),
            ([f"rediss://h?ssl_ca_certs={ca}&ssl_cert_reqs=required&ssl_check_hostname=False"], {"ca": [{"file": ca}], "verify": "ca"}),
            ([{"address": "rediss://h", "ssl_cert_reqs": None}], {"verify": "none"}),
            ([{"host": "h", "ssl": True, "ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}], {"verify": "none"}),
            (["rediss://h?ssl_cert_reqs=none"], {"verify": "none"}),
            ([{"host": "h", "ssl": True, "ssl_check_hostname": False}], {"verify": "ca"}),
            ([{"host": "h", "ssl": True, "ssl_ca_data": other}], {"ca": [other]}),
            ([f"rediss://a?ssl_ca_certs={ca}", {"address": f"rediss://b?ssl_ca_certs={ca}"}], {"ca": [{"file": ca}]}),
            ([named], {"ca": [{"file": ca}]}),
            # The gateway refuses both where no server has TLS.
            ([{"host": "h", "ssl_ca_certs": ca}], {}),
        ]:
            with self.subTest(hosts=hosts):
                redis = self.printed(CHANNEL_LAYERS=layer(hosts=hosts))["redis"]
                self.assertEqual({key: redis[key] for key in redis if key != "url"}, expected)
        lost = ["ssl_cert_reqs and ssl_check_hostname differ"]
        mixed = self.printed(CHANNEL_LAYERS=layer(hosts=["rediss://a?ssl_cert_reqs=none", "rediss://b?ssl_check_hostname=no"]), lost=lost)
        self.assertEqual(mixed["redis"]["verify"], "ca")

    def test_what_a_url_cannot_say(self):
        self.hosts("rediss://h?ssl_keyfile=/key.pem", {"address": "rediss://h", "ssl_ca_path": "/ca"}, lost=["ssl_keyfile", "hosts[1]: ssl_ca_path"])
        half = {"sentinels": [("s", 1)], "master_name": "m", "ssl": True, "sentinel_kwargs": {"socket_timeout": 1, "ssl_keyfile": "x"}}
        self.hosts(half, lost=["TLS either to Sentinels and servers", "sentinel_kwargs ssl_keyfile"])
        for host in ["unix:///run/redis.sock?db=1", {"path": "/run/redis.sock"}]:
            self.assertEqual(self.hosts(host, lost=["hosts[0]: Lockgate does not use unix sockets"]), [])

    def test_hosts_are_a_list(self):
        with self.assertRaisesMessage(CommandError, "hosts must be a list"):
            Printed(CHANNEL_LAYERS=layer(hosts="redis://h"))

    def test_one_host_is_the_tenants_redis(self):
        acme = self.printed(CHANNEL_LAYERS=layer(hosts=["redis://:hunter2@h:1/2"]))
        self.assertEqual((acme["redis"], acme["layer"]), ({"url": {"env": "ACME_REDIS_URL"}}, {"kind": "pubsub"}))
        acme = self.printed(CHANNEL_LAYERS=layer(hosts=["redis://h/2"]), LOCKGATE={"REDIS_URL": "redis://h/2"})
        self.assertEqual((acme["redis"], acme["layer"]), ({"url": "redis://h/2"}, {"kind": "pubsub"}))
        acme = self.printed(CHANNEL_LAYERS=layer(hosts=["redis://:a@h"]), LOCKGATE={"REDIS_URL": "redis://:b@h"})
        self.assertEqual(acme["layer"]["hosts"], [{"env": "ACME_LAYER_HOST_0"}])

    def test_what_both_layers_have(self):
        keys = ["hunter2", b"hunter2"]
        for kind, backend in [("pubsub", PUBSUB), ("pubsub", RECORDING), ("core", CORE)]:
            conf = {"prefix": "shop", "serializer_format": "json", "symmetric_encryption_keys": keys}
            acme = self.printed(CHANNEL_LAYERS=layer(backend, **conf))["layer"]
            expected = {"kind": kind, "prefix": "shop", "serializer_format": "json"}
            self.assertEqual({name: acme[name] for name in expected}, expected)
            self.assertEqual(acme["symmetric_encryption_keys"], [{"env": "ACME_LAYER_KEY_0"}, {"env": "ACME_LAYER_KEY_1"}])
            self.assertNotIn("hunter2", self.text)

    def test_what_the_core_layer_has(self):
        capacity = {"http.request": 200, 'a"b*': 5, "websocket.send*": 20, re.compile("x.*"): 1}
        conf = {"expiry": 20, "group_expiry": 3600, "capacity": 1500, "channel_capacity": capacity, "random_prefix_length": 0}
        acme = self.printed(CHANNEL_LAYERS=layer(CORE, **conf), lost=["channel_capacity x.*"])["layer"]
        self.assertEqual(
            acme,
            {"kind": "core", "expiry": "20s", "group_expiry": "3600s", "capacity": 1500, "random_prefix_length": 0,
             "channel_capacity": {"http.request": 200, 'a"b*': 5, "websocket.send*": 20}},
        )  # fmt: skip
        self.assertEqual(self.printed(CHANNEL_LAYERS=layer(CORE))["layer"], {"kind": "core"})

    def test_what_the_pubsub_layer_ignores_is_left_out(self):
        conf = {"expiry": 20, "capacity": 1500, "on_disconnect": "x"}
        self.assertEqual(self.printed(CHANNEL_LAYERS=layer(**conf))["layer"], {"kind": "pubsub"})

    def test_what_lockgate_cannot_follow(self):
        conf = {"serializer_format": "yaml", "symmetric_encryption_keys": [b"\xff"]}
        self.printed(CHANNEL_LAYERS=layer(**conf), lost=["serializer_format yaml", "symmetric_encryption_keys[0]"])
        for layers in [{}, layer("channels.layers.InMemoryChannelLayer"), layer("shop.layers.Own")]:
            printed = Printed(CHANNEL_LAYERS=layers)
            self.assertIn("not mapped: CHANNEL_LAYERS: BACKEND", printed.lost)
            self.assertEqual((printed.tenant["layer"], printed.tenant["redis"]), ({}, {}))


@contextmanager
def in_schema(name, domains, holding=None):
    """A connection of django-tenants that has this schema set; the tables of users are in `holding`."""
    found = mock.MagicMock()
    found.return_value.__enter__.return_value.fetchone.return_value = (holding or name,)
    tenant = mock.MagicMock()
    tenant.domains.order_by.return_value.values_list.return_value = domains
    place = "django.db.backends.postgresql.base.DatabaseWrapper"
    with (
        mock.patch(f"{place}.cursor", found),
        mock.patch(f"{place}.schema_name", name, create=True),
        mock.patch(f"{place}.tenant", tenant, create=True),
    ):
        yield


@contextmanager
def in_table(model, name):
    """The model as if its table had this name. Fields remember the table that they were seen in."""
    with mock.patch.object(model._meta, "db_table", name):
        forget_columns(model)
        yield
    forget_columns(model)


def forget_columns(model):
    for field in model._meta.get_fields():
        field.__dict__.pop("cached_col", None)


def without_key(token):
    return {name: value for name, value in token.items() if name not in ("algorithm", "signing_key")}


def key_text(key):
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
