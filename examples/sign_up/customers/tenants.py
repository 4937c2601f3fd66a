"""The tenants of Lockgate: the document of a customer, and the calls of the management API that put and delete it."""

import http.client
import json
import urllib.error
import urllib.request

from django.conf import settings


class TenantRefused(Exception):
    """Lockgate does not take the document. The text says why: it is for the log, as it may name other tenants and their servers."""


class TenantUnavailable(Exception):
    """Lockgate, or its registry, does not answer. The call may be tried again. The text is for the log."""


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
    """Makes or changes the tenant. Each replica that the answer counts serves it then; the others within `registry.poll`."""
    call("PUT", customer.name, document(customer))


def delete(name):
    """Deletes the tenant, and closes its sockets. One that is not there is no error."""
    call("DELETE", name, None, fine="tenant_not_found")


def call(method, name, body, fine=None):
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
        problem = problem_of(error)
        if fine is not None and problem.get("code") == fine:
            return
        mistakes = problem.get("mistakes", [])
        told = [f"{mistake['key']}: found {mistake['found']}, expected {mistake['expected']}" for mistake in mistakes]
        text = f"{method} of tenant {name}: {error.code} " + ("; ".join(told) or problem.get("detail", ""))
        # What is not Lockgate's own answer is that of a proxy, or of another server.
        if error.code >= 500 or error.code == 429 or "code" not in problem:
            raise TenantUnavailable(text) from error
        raise TenantRefused(text) from error
    except (OSError, http.client.HTTPException) as error:
        raise TenantUnavailable(f"{method} of tenant {name}: {error!r}") from error


def problem_of(error):
    """Returns the problem document of an answer; one without a code if the answer has none, as the page of a proxy."""
    try:
        problem = json.load(error)
    except (ValueError, OSError, http.client.HTTPException):
        problem = None
    return problem if isinstance(problem, dict) else {"detail": "the answer is not Lockgate's"}
