"""The tenants of Lockgate: the document of a customer, and the calls of the management API that put and delete it."""

import json
import urllib.error
import urllib.request

from django.conf import settings


class TenantRefused(Exception):
    """Lockgate does not take the document; the text says why."""


class TenantUnavailable(Exception):
    """Lockgate, or its registry, does not answer. The call may be tried again."""


def document(customer):
    """Returns the keys of [tenants.NAME]: for each customer the same but for name, host and keys."""
    return {
        "hosts": [customer.host],
        "origins": [settings.SITE_ORIGIN],
        "token": {"keys": [{"algorithm": "HS256", "signing_key": key} for key in customer.keys()]},
        "users": {"source": "claims"},
        # The dot ends it, so that the prefix of "acme" does not begin that of "acme-corp".
        "layer": {"kind": "pubsub", "prefix": f"{customer.name}."},
        "routes": [
            {
                "path": "ws/chat/<slug:room>/",
                "groups": ["chat_{room}"],
                "consumer": {"kind": "broadcast", "type": "chat.message"},
            },
        ],
    }


def put(customer):
    """Makes or changes the tenant. Once this returns, every replica that Lockgate knows serves it."""
    call("PUT", customer.name, document(customer))


def delete(name):
    """Deletes the tenant, and closes its sockets. One that is not there is no error."""
    call("DELETE", name, None, missing_is_fine=True)


def call(method, name, body, missing_is_fine=False):
    request = urllib.request.Request(
        f"{settings.LOCKGATE_API}/v1/tenants/{name}",
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Authorization": f"Bearer {settings.LOCKGATE_KEY}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10):
            pass
    except urllib.error.HTTPError as error:
        problem = json.load(error)
        if error.code == 404 and missing_is_fine:
            return
        if error.code >= 500 or error.code == 429:
            raise TenantUnavailable(problem.get("detail", "")) from error
        mistakes = problem.get("mistakes", [])
        told = [f"{mistake['key']}: found {mistake['found']}, expected {mistake['expected']}" for mistake in mistakes]
        raise TenantRefused("; ".join(told) or problem.get("detail", "")) from error
    except OSError as error:
        raise TenantUnavailable("Lockgate does not answer") from error
