"""The page, and the call with which a customer signs up."""

import json

from django.core.exceptions import ValidationError
from django.http import JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST

from customers.models import Customer
from customers.tenants import TenantRefused, TenantUnavailable


@require_GET
def page(request):
    return render(request, "page.html")


@require_POST
def sign_up(request):
    """Makes a customer. A site of yours also makes its first user, and gives out tokens to those who have logged in."""
    customer = Customer(name=json.loads(request.body)["name"])
    try:
        customer.full_clean()
        customer.save()
    except ValidationError as error:
        return JsonResponse({"error": " ".join(error.messages)}, status=400)
    except TenantRefused as error:
        return JsonResponse({"error": str(error)}, status=400)
    except TenantUnavailable as error:
        answer = JsonResponse({"error": str(error)}, status=503)
        answer["Retry-After"] = "1"
        return answer
    return JsonResponse({"socket": customer.socket_url(), "token": customer.token("1")}, status=201)
