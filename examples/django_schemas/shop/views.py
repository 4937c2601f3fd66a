"""What a back end does to sockets; every request is in the schema of its domain."""

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import connection
from lockgate import revoke_token
from rest_framework.decorators import api_view
from rest_framework.response import Response


@api_view(["POST"])
def send(request, room):
    group = f"{connection.schema_name}.chat_{room}"
    event = {"type": "chat.message", "message": request.data["message"]}
    async_to_sync(get_channel_layer().group_send)(group, event)
    return Response(status=204)


@api_view(["POST"])
def logout(request):
    revoke_token(request.auth)
    return Response(status=204)


@api_view(["POST"])
def password(request):
    request.user.set_password(request.data["password"])
    request.user.save()
    return Response(status=204)
