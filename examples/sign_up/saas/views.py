"""The page, and the call with which a customer signs up."""

import json
import logging

from django.core.exceptions import ValidationError
from django.http import JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST

from customers.models import Customer
from customers.tenants import TenantRefused, TenantUnavailable

log = logging.getLogger(__name__)


@require_GET
def page(request):
    return render(request, "page.html")


@require_POST
def sign_up(request):
    """Makes a customer. A site of yours also makes its first user, and gives out tokens to those who have logged in."""
    try:
        body = json.loads(request.body)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("name"), str):
        return JsonResponse({"error": 'Send {"name": "…"} as JSON.'}, status=400)
    customer = Customer(name=body["name"])
    try:
        customer.full_clean()
        customer.save()
    except ValidationError as error:
        return JsonResponse({"error": " ".join(error.messages)}, status=400)
    # A stranger is not told what is meant for operators.
    except TenantRefused as error:
        log.error("A sign-up was refused: %s", error)
        return JsonResponse({"error": "This name cannot be taken."}, status=400)
    except TenantUnavailable as error:
        log.error("A sign-up failed: %s", error)
        answer = JsonResponse({"error": "Signing up is not possible now. Try again in a moment."}, status=503)
        answer["Retry-After"] = "1"
        return answer
    return JsonResponse({"socket": customer.socket_url(), "token": customer.token("1")}, status=201)
