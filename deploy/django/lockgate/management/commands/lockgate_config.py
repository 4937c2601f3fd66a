"""Prints the tenant's part of Lockgate's configuration from the settings of this project.

    manage.py lockgate_config --tenant acme > tenants.d/acme.toml

Where the schemas of one project are tenants (django-tenants), each has a file:

    manage.py tenant_command lockgate_config --schema=acme --secrets shop > tenants.d/acme.toml

It then has the domains and the tables of that schema, and the schema's name and a period as the namespace of its groups.

It prints no secret. Each one is `{ env = "…" }` with a comment that describes the variable. A setting without a counterpart
becomes a comment `# not mapped: …`, which is repeated on standard error.
"""

import json
import re
from datetime import timedelta
from urllib.parse import quote, urlencode

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.core.management import BaseCommand, CommandError
from django.db import connections, models, router
from django.utils.module_loading import import_string
from rest_framework_simplejwt import authentication, tokens
from rest_framework_simplejwt import settings as jwt_settings

from lockgate import DEFAULTS
from lockgate.management.redis_hosts import Redis, address, trust_of

ALGORITHMS = "HS256 HS384 HS512 RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 EdDSA".split()
LAYERS = {
    "channels_redis.pubsub.RedisPubSubChannelLayer": "pubsub",
    "lockgate.layers.RedisPubSubChannelLayer": "pubsub",
    "channels_redis.core.RedisChannelLayer": "core",
    "lockgate.layers.RedisClusterChannelLayer": "sharded",
}
# Options for the connections of a client, which do not concern Lockgate.
LOCAL_DATABASE = re.compile("pool|isolation_level|.*timeout|charset|init_command|sql_mode|transaction_mode|server_side_binding")
WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
NAMESPACE = re.compile(r"(?!.*__group__)[\w.-]{0,64}", re.ASCII)
EACH_SCHEMA = "Each other schema has a file of its own: manage.py tenant_command lockgate_config --schema=NAME"
# The columns of a user that Lockgate reads, if the table has them.
COLUMNS = ["username", "first_name", "last_name", "email", "is_active", "is_staff", "is_superuser"]


class Command(BaseCommand):
    help = "Prints [tenants.NAME] of Lockgate's configuration for this project."
    # The settings in LOCKGATE may not exist yet.
    requires_system_checks = []

    def add_arguments(self, parser):
        parser.add_argument("--tenant", help='the name of the tenant (default: LOCKGATE["TENANT"])')
        parser.add_argument("--namespace", help="the beginning of its groups, where tenants share the channel layer: acme.")
        parser.add_argument("--secrets", help="the beginning of the names of variables with secrets (default: the tenant's name)")

    def handle(self, *args, tenant=None, namespace=None, secrets=None, **options):
        self.conf = DEFAULTS | (getattr(settings, "LOCKGATE", None) or {})
        own = self.conf["TENANT"]
        self.tenant = tenant or (own() if callable(own) else own)
        connection = connections[router.db_for_read(get_user_model())]
        self.schema = schema_of(connection)
        if not re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", self.tenant or ""):
            hint = f"; {EACH_SCHEMA}" if is_public(connection) else ""
            raise CommandError(f"--tenant must be a name of 1 to 63 of a-z, 0-9 and -, not beginning with -{hint}")
        self.namespace = namespace if namespace is not None else f"{self.schema}." if self.schema else ""
        if not NAMESPACE.fullmatch(self.namespace):
            raise CommandError("--namespace must be at most 64 ASCII letters, digits, -, _ and periods, without __group__")
        self.secrets = secrets or self.tenant
        self.jwt = jwt_settings.api_settings
        classes = getattr(settings, "REST_FRAMEWORK", {}).get("DEFAULT_AUTHENTICATION_CLASSES", [])
        classes = [import_string(name) if isinstance(name, str) else name for name in classes]
        self.authentications = [kind for kind in classes if issubclass(kind, authentication.JWTAuthentication)]
        # The first class that takes a token decides about its user.
        self.is_stateless = bool(self.authentications) and is_stateless(self.authentications[0])
        self.lines = []
        self.say_hosts(connection)
        layer = getattr(settings, "CHANNEL_LAYERS", {}).get("default", {})
        layer_hosts = []
        if layer.get("BACKEND") in LAYERS:
            # The default of channels_redis, which also refuses a plain text.
            layer_hosts = layer.get("CONFIG", {}).get("hosts") or ["redis://localhost:6379"]
            if not isinstance(layer_hosts, (list, tuple)):
                raise CommandError("CHANNEL_LAYERS: hosts must be a list")
            layer_hosts = [Redis(host) for host in layer_hosts]
        own = Redis(self.conf["REDIS_URL"]) if self.conf["REDIS_URL"] else next(iter(layer_hosts), None)
        self.say_redis(own, layer_hosts)
        self.say_token()
        self.say_users()
        self.say_layer(layer, layer_hosts, own)
        return "\n".join([*self.lines, "", f"# Django's settings do not say what paths do: add [[tenants.{self.tenant}.routes]]."])

    def table(self, name=""):
        self.lines += [""] * bool(self.lines) + [f"[tenants.{self.tenant}{name}]"]

    def put(self, key, value, default=None):
        if value != default:
            self.lines.append(f"{key} = {toml(value)}")

    def put_secret(self, key, name, comment):
        self.lines.append(f"{key} = {self.env(name)}  # {comment}")

    def env(self, name):
        return f'{{ env = "{self.secrets.upper().replace("-", "_")}_{name}" }}'

    def not_mapped(self, text):
        text = " ".join(text.split())
        self.lines.append(f"# not mapped: {text}")
        self.stderr.write(f"not mapped: {text}")

    def say_hosts(self, connection):
        self.table()
        if is_public(connection):
            owner = getattr(settings, "TENANT_MODEL", "the project")
            self.not_mapped(f"the schemas of {owner}: this is the public one. {EACH_SCHEMA}")
        names, hosts = self.domains(connection) if self.schema else settings.ALLOWED_HOSTS, []
        for host in names:
            hosts += [host[1:], f"*{host}"] if host.startswith(".") else [host]
        if any(host.startswith("*.") for host in hosts):
            self.lines.append("# \"*.\" stands for one label here; Django's \".\" for any number of them.")
        if hosts:
            self.put("hosts", list(dict.fromkeys(host.lower() for host in hosts)))
        elif not self.schema:
            self.lines.append("# ALLOWED_HOSTS is empty; without hosts a sole tenant has every host.")
        # A comment only, because with a list the request's own host must be in it.
        origins = list(getattr(settings, "CORS_ALLOWED_ORIGINS", [])) or ["https://app.example.com"]
        self.lines.append(f"# origins = {toml(origins)}  # pages that may connect; default: those of the request's own host")

    def domains(self, connection):
        """Returns the domains of a schema. ALLOWED_HOSTS has those of all schemas, and a host belongs to one tenant."""
        if prefix := getattr(settings, "TENANT_SUBFOLDER_PREFIX", ""):
            self.not_mapped(f"TENANT_SUBFOLDER_PREFIX {prefix}: Lockgate knows a tenant by its host: give the sockets of {self.schema} one, in hosts")
            return []
        domains = getattr(connection.tenant, "domains", None)
        names = [] if domains is None else list(domains.order_by("pk").values_list("domain", flat=True))
        if not names:
            self.not_mapped(f"the schema {self.schema} has no domain: write hosts")
        return names

    def say_redis(self, own, layer_hosts):
        self.table(".redis")
        if own is None:
            self.lines.append("# The deployment's [redis], unless LOCKGATE has a REDIS_URL.")
        else:
            self.say_lost('LOCKGATE["REDIS_URL"]' if self.conf["REDIS_URL"] else "CHANNEL_LAYERS: hosts[0]", own)
            if own.is_secret:
                self.put_secret("url", "REDIS_URL", own.shown)
            elif own.url:
                self.put("url", own.url)
            self.say_trust([own, *layer_hosts])
        if self.conf["DENYLIST_URL"]:
            self.lines.append("# DENYLIST_URL is the deployment's: [denylist] redis.")
        if self.conf["KEEP"] != DEFAULTS["KEEP"]:
            self.lines.append(f"# KEEP is the deployment's: [denylist] keep = {toml(span(self.conf['KEEP']))}.")

    def say_trust(self, hosts):
        ca, verify, is_mixed = trust_of(hosts)
        self.put("ca", ca, [])
        self.put("verify", verify, "full")
        if is_mixed:
            self.not_mapped("ssl_cert_reqs and ssl_check_hostname differ between servers: verify is the strictest of them")

    def say_lost(self, source, redis):
        for lost in redis.lost:
            self.not_mapped(f"{source}: {lost}")

    def say_token(self):
        jwt = self.jwt
        self.table(".token")
        if jwt.ALGORITHM not in ALGORITHMS:
            self.not_mapped(f'SIMPLE_JWT["ALGORITHM"] {jwt.ALGORITHM}: Lockgate has {", ".join(ALGORITHMS)}')
        else:
            self.put("algorithm", jwt.ALGORITHM)
        if jwt.ALGORITHM.startswith("HS"):
            is_default = jwt.SIGNING_KEY == settings.SECRET_KEY
            self.put_secret("signing_key", "SIGNING_KEY", "SECRET_KEY" if is_default else 'SIMPLE_JWT["SIGNING_KEY"]')
        elif jwt.JWK_URL:
            self.put("jwk_url", jwt.JWK_URL)
        # PEM, or a line of OpenSSH, which PyJWT takes as well.
        elif isinstance(jwt.VERIFYING_KEY, str) and ("PUBLIC KEY" in jwt.VERIFYING_KEY or jwt.VERIFYING_KEY.startswith(("ssh-", "ecdsa-"))):
            self.put("verifying_key", jwt.VERIFYING_KEY)
        else:
            name = f"{self.secrets}-verifying-key.pem"
            self.lines.append(f'verifying_key = {{ file = "{name}" }}  # the public key (PEM) of SIMPLE_JWT["SIGNING_KEY"]')
        # Defaults are Lockgate's; a setting that this release of simplejwt lacks has the same.
        for name, default in [
            ("USER_ID_CLAIM", "user_id"),
            ("JTI_CLAIM", "jti"),
            ("TOKEN_TYPE_CLAIM", "token_type"),
        ]:
            value = getattr(jwt, name, default)
            self.put(name.lower(), False if value is None else value, default)
        # A TokenUser has no record that either could compare.
        if not self.is_stateless:
            self.put("check_revoke_token", getattr(jwt, "CHECK_REVOKE_TOKEN", False), False)
            self.put("check_user_is_active", getattr(jwt, "CHECK_USER_IS_ACTIVE", True), True)
            if getattr(jwt, "CHECK_REVOKE_TOKEN", False):
                self.put("revoke_token_claim", jwt.REVOKE_TOKEN_CLAIM, "hash_password")
        for name in ["AUDIENCE", "ISSUER"]:
            value = getattr(jwt, name)
            if value:
                self.put(name.lower(), value if isinstance(value, str) else list(value))
            elif value is not None:
                self.not_mapped(f'SIMPLE_JWT["{name}"] is empty, and an empty one is not checked here')
        self.put("leeway", span(jwt.LEEWAY or 0), "0s")
        self.put("on_expiry", self.conf["ON_EXPIRY"], "close")
        self.say_cookie()
        if self.schema:
            rule = f"claims = {{ schema = {toml(self.schema)} }}"
            self.lines.append(f"# {rule}  # one key signs for all schemas: only a claim that you add to tokens tells them apart")
        self.say_token_classes()
        if jwt.JSON_ENCODER:
            self.not_mapped('SIMPLE_JWT["JSON_ENCODER"]: claims must be plain JSON')
        for name in ["TOKEN_OBTAIN_SERIALIZER", "USER_AUTHENTICATION_RULE"]:
            own, default = jwt.user_settings.get(name), jwt_settings.DEFAULTS[name]
            if own and own != default:
                self.not_mapped(f'SIMPLE_JWT["{name}"]: it acts where tokens are issued; a claim that it adds is {{claims.NAME}}')
        self.say_authentication()

    def say_cookie(self):
        """The cookie that dj-rest-auth, or a class of the project's own, reads the token from."""
        own = getattr(settings, "REST_AUTH", None) or {}
        name = own.get("JWT_AUTH_COOKIE") or getattr(settings, "JWT_AUTH_COOKIE", None) or self.jwt.user_settings.get("AUTH_COOKIE")
        if name:
            self.put("sources", ["query", "header", "subprotocol", "cookie"])
            self.put("cookie", name, "access_token")

    def say_token_classes(self):
        kinds = []
        for kind in self.jwt.AUTH_TOKEN_CLASSES:
            if kind is tokens.UntypedToken:
                self.put("token_type_claim", False, False if self.jwt.TOKEN_TYPE_CLAIM is None else None)
            elif kind not in (tokens.AccessToken, tokens.SlidingToken, tokens.RefreshToken):
                self.not_mapped(f'SIMPLE_JWT["AUTH_TOKEN_CLASSES"] {kind.__qualname__}: the type counts, its own code does not run')
            kinds.append(kind.token_type)
            if issubclass(kind, tokens.BlacklistMixin) and apps.is_installed("rest_framework_simplejwt.token_blacklist"):
                self.not_mapped(f"the blacklist of {kind.__qualname__}: Lockgate does not read it; call revoke_token")
        self.put("token_types", kinds, ["access"])

    def say_authentication(self):
        """Names the checks of the API's own authentication that Lockgate does not make."""
        # Read from the settings as text, because the class need not be importable here.
        own, default = self.jwt.user_settings.get("TOKEN_USER_CLASS"), jwt_settings.DEFAULTS["TOKEN_USER_CLASS"]
        if own and own != default:
            does = "its own code does not run; a claim is {user.NAME}" if self.is_stateless else "users come from the database, not from claims"
            self.not_mapped(f'SIMPLE_JWT["TOKEN_USER_CLASS"]: {does}')
        for kind in self.authentications:
            if is_stateless(kind) != self.is_stateless:
                other = "the claims are the user" if self.is_stateless else "users come from the database, not from claims"
                self.not_mapped(f"{kind.__qualname__}: {other}, as {self.authentications[0].__qualname__} before it says")
            elif kind not in (authentication.JWTAuthentication, authentication.JWTStatelessUserAuthentication):
                plain = authentication.JWTStatelessUserAuthentication if self.is_stateless else authentication.JWTAuthentication
                self.not_mapped(f"{kind.__qualname__}: Lockgate does what {plain.__qualname__} does")

    def say_users(self):
        if self.is_stateless:
            self.table(".users")
            self.put("source", "claims")
            # A TokenUser's id is the claim as it is, whatever the ids of this project's own users are.
            self.put("id_type", "text")
            return
        model, name = get_user_model(), self.jwt.USER_ID_FIELD
        key = model._meta.pk if name == "pk" else field_of(model, name)
        if key is None:
            raise CommandError(f'SIMPLE_JWT["USER_ID_FIELD"] {name!r} is no column of {model._meta.label}')
        if is_composite(key):
            raise CommandError(f'SIMPLE_JWT["USER_ID_FIELD"] {name!r} has several columns in {model._meta.label}: name one that is unique')
        self.key_name = self.name_of(model, key)
        # Belongs to the table before this one.
        self.put("user_id_field", self.key_name, "id")
        alias = router.db_for_read(model)
        self.table(".users")
        self.say_database(connections[alias])
        self.say_id_type(key)
        if (query := self.query(model, key, connections[alias])) is not None:
            self.put("query", query)
        else:
            self.put("table", self.placed(model._meta.db_table, connections[alias]), "auth_user")
        if model.objects.all().query.where:
            self.not_mapped(f"{model._meta.label}.objects leaves users out: Lockgate finds every row of the table")
        self.put("stale_ttl", span(self.conf["STALE_TTL"]), "3600s")
        if self.schema:
            self.say_tenants(model, connections[alias])

    def say_tenants(self, model, connection):
        """Names the settings of LOCKGATE without which a change of a user does not reach the tenants that it concerns."""
        if not callable(self.conf["TENANT"]):
            self.not_mapped(f'LOCKGATE["TENANT"] is no function: what is revoked in any schema is revoked for {self.conf["TENANT"]}')
        place = self.schema_holding(model._meta.db_table, connection)
        if place != self.schema and self.conf["USER_TENANTS"] is None:
            self.not_mapped(
                f'the users in {place} are those of other schemas too: set LOCKGATE["USER_TENANTS"], or a saved user concerns one tenant or none'
            )

    def name_of(self, model, key):
        """Returns the name under which the rows have the key."""
        if key.primary_key or key.attname == "id":
            return "id"
        # A name that needs quotes, or that is another field's, would be mistaken for something else.
        is_own = WORD.fullmatch(key.column) and field_of(model, key.column) in (None, key)
        return key.column if is_own else key.attname

    def say_id_type(self, key):
        kind = kind_of(key)
        if isinstance(kind, models.UUIDField):
            self.put("id_type", "uuid")
        elif not isinstance(kind, models.IntegerField):
            self.put("id_type", "text")
            if not isinstance(kind, (models.CharField, models.TextField)):
                self.not_mapped(f"{type(kind).__name__} {key.column}: compared as the text that the database makes of it")

    def say_database(self, connection):
        conf, vendor = connection.settings_dict, connection.vendor
        name, options, host = str(conf["NAME"]), dict(conf["OPTIONS"]), conf["HOST"]
        if vendor == "sqlite":
            if name == ":memory:" or name.startswith("file:"):
                self.not_mapped("DATABASES: a database in memory is the process's own")
            else:
                self.put("database", f"sqlite://{quote(name)}?mode=ro")
            return
        if vendor not in ("postgresql", "mysql"):
            self.not_mapped(f"DATABASES: {vendor} is none of PostgreSQL, MySQL and SQLite")
            return
        query = {}
        if vendor == "postgresql":
            query = {key: options.pop(key) for key in ["sslmode", "sslrootcert", "sslcert", "sslkey"] if key in options}
            if not host or host.startswith("/"):
                query["host"] = host or "/var/run/postgresql"
        elif "ca" in (options.get("ssl") or {}):
            query = {"ssl-mode": "VERIFY_CA", "ssl-ca": options.pop("ssl")["ca"]}
        if vendor == "mysql" and host.startswith("/"):
            query["socket"] = host
        is_tcp = bool(host) and not host.startswith("/")
        port = conf["PORT"] or (is_tcp and {"postgresql": 5432, "mysql": 3306}[vendor])
        place = (address(host) if is_tcp else "localhost") + (f":{port}" if port else "")
        scheme = {"postgresql": "postgres"}.get(vendor, vendor)
        shown = f"{scheme}://USER:PASSWORD@{place}/{quote(name, safe='')}" + ("?" + urlencode(query) if query else "")
        self.put_secret("database", "DATABASE_URL", f"{shown}, of a role that may only read")
        for option in options:
            if not LOCAL_DATABASE.fullmatch(option):
                self.not_mapped(f'DATABASES: OPTIONS["{option}"]')

    def query(self, model, key, connection):
        """Returns a statement that selects this model with the columns of auth_user; None if its table has these columns."""
        with_active = getattr(self.jwt, "CHECK_USER_IS_ACTIVE", True)
        names = [*COLUMNS, "password"] if getattr(self.jwt, "CHECK_REVOKE_TOKEN", False) else COLUMNS
        # Of a key with several columns only the one that names the user is of use.
        fields = {} if is_composite(model._meta.pk) else {"id": model._meta.pk}
        fields[self.key_name] = key
        for name in names:
            if name not in fields and (field := field_of(model, name)):
                fields[name] = field
        is_own = "is_active" not in fields and with_active
        if is_own and getattr(model, "is_active", True) is not True:
            self.not_mapped(f"{model._meta.label}.is_active: it is computed in Python; every user counts as active")
        table = model._meta.db_table
        # Lockgate knows the columns of auth_user, and refuses another one as the key.
        is_known = table != "auth_user" or self.key_name in ["id", *COLUMNS]
        is_word = WORD.fullmatch(table) and WORD.fullmatch(self.schema or table)
        if is_known and is_word and not is_own and all(
            field.column == name and field.model._meta.db_table == table for name, field in fields.items()
        ):
            return None
        # Django's own query has the joins of a model with several tables, and knows where each column is.
        rows = model._base_manager.using(connection.alias).order_by().values_list(*[field.attname for field in fields.values()])
        compiler = rows.query.get_compiler(connection=connection)
        sql, _ = compiler.as_sql()
        columns = dict(zip(fields, [column for _, (column, _), _ in compiler.select]))
        chosen = [f"{column} AS {connection.ops.quote_name(name)}" for name, column in columns.items()]
        if is_own:
            chosen.append(f"TRUE AS {connection.ops.quote_name('is_active')}")
        source = sql[sql.index(" FROM ", len(", ".join(columns.values()))) :]
        for name in {join.table_name for join in rows.query.alias_map.values()} if self.schema else ():
            quoted = connection.ops.quote_name(name)
            placed = self.placed(name, connection, connection.ops.quote_name)
            source = re.sub(f"( FROM | JOIN ){re.escape(quoted)}", lambda found: found[1] + placed, source)
        return f"SELECT {', '.join(chosen)}{source} WHERE {self.condition(key, columns[self.key_name], connection)}"

    def placed(self, table, connection, quoted=str):
        """Returns the name of a table with its schema, where schemas are tenants: Lockgate has no search path."""
        if not self.schema or '"' in table:
            return quoted(table)
        return f"{quoted(self.schema_holding(table, connection))}.{quoted(table)}"

    def schema_holding(self, table, connection):
        with connection.cursor() as cursor:
            cursor.execute("SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass(%s)", [f'"{table}"'])
            row = cursor.fetchone()
        # The tables of a schema that has none yet will be in it.
        return row[0].strip('"') if row else self.schema

    def condition(self, key, column, connection):
        """Finds the ids in `column`. They are bound as texts, which PostgreSQL compares with no column of another type."""
        kind = kind_of(key)
        is_typed = isinstance(kind, models.UUIDField) or (self.key_name == "id" and isinstance(kind, models.IntegerField))
        if connection.vendor == "postgresql" and not is_typed:
            type_name = (kind.rel_db_type(connection) or "text").partition("(")[0]
            if type_name not in ("text", "varchar", "char", "citext"):
                # The values are converted and not the column, so that an index is of use.
                return f"{column} = ANY (ARRAY[:user_ids]::{type_name}[])"
        return f"{column} IN (:user_ids)"

    def say_layer(self, layer, hosts, own):
        backend, conf = layer.get("BACKEND"), layer.get("CONFIG", {})
        self.table(".layer")
        if backend not in LAYERS:
            self.not_mapped(f"CHANNEL_LAYERS: BACKEND {backend}: Lockgate has {' and '.join(LAYERS)}")
            return
        kind = LAYERS[backend]
        self.put("kind", kind)
        # A single host that is the tenant's Redis need not be written.
        if [host.url for host in hosts] != [own.url]:
            self.say_layer_hosts(hosts)
        self.put("prefix", conf.get("prefix", "asgi"), "asgi")
        self.put("namespace", self.namespace, "")
        if self.schema and backend.startswith("lockgate.") and "tenants" not in conf:
            self.not_mapped('CHANNEL_LAYERS: CONFIG has no "tenants": events of all schemas are recorded by the rules of one tenant')
        if conf.get("serializer_format", "msgpack") in ("msgpack", "json"):
            self.put("serializer_format", conf.get("serializer_format", "msgpack"), "msgpack")
        else:
            self.not_mapped(f"CHANNEL_LAYERS: serializer_format {conf['serializer_format']}: Lockgate has msgpack and json")
        if keys := conf.get("symmetric_encryption_keys"):
            self.lines.append("symmetric_encryption_keys = [")
            for index, key in enumerate(keys):
                which = f"CHANNEL_LAYERS: symmetric_encryption_keys[{index}]"
                if isinstance(key, bytes) and not is_text(key):
                    self.not_mapped(f"{which}: bytes that are no text")
                else:
                    self.lines.append(f"    {self.env(f'LAYER_KEY_{index}')},  # {which}")
            self.lines.append("]")
        if kind == "core":
            self.say_core(conf)

    def say_layer_hosts(self, hosts):
        for index, host in enumerate(hosts):
            self.say_lost(f"CHANNEL_LAYERS: hosts[{index}]", host)
        self.lines.append("hosts = [")
        for index, host in enumerate(hosts):
            if host.is_secret:
                self.lines.append(f"    {self.env(f'LAYER_HOST_{index}')},  # {host.shown}")
            elif host.url:
                self.lines.append(f"    {toml(host.url)},")
        self.lines.append("]")

    def say_core(self, conf):
        for name, default in [("expiry", 60), ("group_expiry", 86400)]:
            self.put(name, span(conf.get(name, default)), span(default))
        for name, default in [("capacity", 100), ("random_prefix_length", 12)]:
            self.put(name, conf.get(name, default), default)
        capacities = {}
        for pattern, capacity in (conf.get("channel_capacity") or {}).items():
            if isinstance(pattern, str):
                capacities[pattern] = capacity
            else:
                self.not_mapped(f"CHANNEL_LAYERS: channel_capacity {pattern.pattern}: Lockgate has globs, no regular expressions")
        self.put("channel_capacity", capacities, {})


def is_stateless(kind):
    """Returns whether an authentication class of simplejwt makes its user of the claims (TokenUser), without a query."""
    return issubclass(kind, authentication.JWTStatelessUserAuthentication)


def schema_of(connection):
    """Returns the schema that django-tenants has set; None if it is the public one."""
    return None if is_public(connection) else getattr(connection, "schema_name", None)


def is_public(connection):
    """Returns whether django-tenants has set the schema that is no tenant of its own."""
    return getattr(connection, "schema_name", None) == getattr(settings, "PUBLIC_SCHEMA_NAME", "public")


def is_composite(key):
    """Whether this is a `CompositePrimaryKey` (Django 5.2), which has no column of its own."""
    return getattr(key, "column", None) is None


def kind_of(field):
    """The field that says which values a column has: the end of a chain of foreign keys."""
    while field.remote_field:
        field = field.target_field
    return field.output_field if getattr(field, "generated", False) else field


def field_of(model, name):
    """The model's field of this name that is a column."""
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return field if getattr(field, "column", None) else None


def span(value):
    """Returns seconds or a timedelta in the form of Lockgate's durations."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{round(seconds * 1000)}ms"


def is_text(data):
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):
        if "\n" in value and "'''" not in value:
            return f"'''\n{value}'''"
        if '"' in value and "'" not in value and value.isprintable():
            return f"'{value}'"
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return json.dumps(value)
