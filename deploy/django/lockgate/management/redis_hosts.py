"""The entries of `hosts` in CHANNEL_LAYERS, and a REDIS_URL, in the form of Lockgate's configuration. `lockgate_config` reads them."""

import re
import ssl
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

# Options for the timeouts and connections of a client, which do not concern Lockgate.
LOCAL_REDIS = re.compile("socket_.*|retry.*|health_check_interval|max_connections|client_name|timeout|protocol|encoding.*")


class Redis:
    """One entry of `hosts` as Lockgate writes it: `url`, as it may be `shown`, `ca` and `verify`, and what is `lost`.

    `url` is None where Lockgate cannot reach it at all.
    """

    def __init__(self, entry):
        self.lost, self.ca, self.verify = [], [], "full"
        if isinstance(entry, (tuple, list)):
            entry = {"host": entry[0], "port": entry[1]}
        options = dict(entry) if isinstance(entry, dict) else {"address": entry}
        self.scheme, self.db = "redis", options.pop("db", 0)
        self.user, self.password = options.pop("username", None), options.pop("password", None)
        self.sentinel_login = {}
        if "address" in options:
            self.read_url(urlsplit(options.pop("address")))
        elif "sentinels" in options:
            self.read_sentinels(options)
        elif "path" in options:
            self.scheme, self.place = "unix", options.pop("path")
        else:
            self.place = f"{address(options.pop('host', 'localhost'))}:{options.pop('port', 6379)}"
        # How redis-py is told to speak TLS without a URL.
        is_tls = [options.pop("ssl", False), "SSL" in getattr(options.pop("connection_class", None), "__name__", "")]
        if any(is_tls):
            self.scheme = re.sub("^rediss?", "rediss", self.scheme)
        self.lost += self.left(options)
        if self.scheme == "unix":
            self.lost, self.url, self.shown = ["Lockgate does not use unix sockets"], None, None
        else:
            hidden = {name: name.upper() for name in self.sentinel_login}
            self.url = self.write(self.user, self.password, self.sentinel_login)
            self.shown = self.write(self.user and "USER", self.password and "PASSWORD", hidden)
        self.is_secret = self.url != self.shown

    def read_url(self, url):
        self.scheme, self.place = url.scheme, url.netloc.rpartition("@")[2]
        self.user = unquote(url.username or "") or self.user
        self.password = unquote(url.password or "") or self.password
        options = dict(parse_qsl(url.query))
        self.db = url.path.strip("/") or options.pop("db", self.db)
        self.lost += self.left(options)

    def read_sentinels(self, options):
        nodes = [f"{address(host)}:{port}" for host, port in options.pop("sentinels")]
        own = dict(options.pop("sentinel_kwargs", None) or {})
        self.scheme, self.place = "redis+sentinel", f"{','.join(nodes)}/{options.pop('master_name')}"
        self.sentinel_login = {name: own.pop(name) for name in ("username", "password") if own.get(name)}
        if bool(own.pop("ssl", False)) != bool(options.get("ssl", False)):
            self.lost.append("TLS either to Sentinels and servers or to none of them")
        self.lost += [f"sentinel_kwargs {option}" for option in self.left(own)]

    def left(self, options):
        """Takes the options of redis-py that say who is trusted, and returns the names of those without a counterpart."""
        options = dict(options)
        if file := options.pop("ssl_ca_certs", None):
            self.ca.append({"file": str(file)})
        if isinstance(options.get("ssl_ca_data"), str):
            self.ca.append(options.pop("ssl_ca_data"))
        # A text, None or a member of ssl.VerifyMode. To a client "optional" is as "required".
        wanted = options.pop("ssl_cert_reqs", "required")
        checks_name = options.pop("ssl_check_hostname", True)
        if wanted in (None, ssl.CERT_NONE, "none"):
            self.verify = "none"
        elif str(checks_name).lower() in ("false", "0", "no", "n", "f") and self.verify == "full":
            self.verify = "ca"
        return [option for option in options if not LOCAL_REDIS.fullmatch(option)]

    def write(self, user, password, sentinel_login):
        login = f"{quote(user or '', safe='')}:{quote(password or '', safe='')}@" if user or password else ""
        query = urlencode({f"sentinel_{name}": value for name, value in sentinel_login.items()}, quote_via=quote)
        return f"{self.scheme}://{login}{self.place}/{self.db}" + (f"?{query}" if query else "")


def trust_of(hosts):
    """Returns `ca` and `verify` for all of these, and whether they differ. Lockgate has one of each for a tenant."""
    hosts = [host for host in hosts if host.url and host.scheme.startswith("rediss")]
    ca = []
    for host in hosts:
        ca += [entry for entry in host.ca if entry not in ca]
    kinds = {host.verify for host in hosts} or {"full"}
    # The strictest: a server that it does not let in is seen at once.
    return ca, min(kinds, key=["full", "ca", "none"].index), len(kinds) > 1


def address(host):
    return f"[{host}]" if ":" in str(host) else host
