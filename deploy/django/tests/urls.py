"""A logout view as the documentation shows it."""

from django.urls import path
from lockgate import NotRevoked, revoke_token
from rest_framework.decorators import api_view
from rest_framework.response import Response


@api_view(["POST"])
def logout(request):
    try:
        revoke_token(request.auth)
    except NotRevoked:
        return Response({"detail": "Try again."}, status=503)
    return Response(status=204)


urlpatterns = [path("logout/", logout)]
