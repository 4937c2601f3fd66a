"""Tokens are taken back by two commands of Redis; no package is needed for that, and no call of the gateway's API."""

import json
import time

import redis
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.conf import settings
from rest_framework.decorators import api_view, permission_classes
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response

server = redis.Redis.from_url(settings.LOCKGATE_REDIS_URL, socket_timeout=1)
ours = f"lockgate:{settings.LOCKGATE_TENANT}:"


def announce(**members):
    server.publish(ours + "control", json.dumps({"v": 1, **members}))


@api_view(["POST"])
@permission_classes([IsAuthenticated])
def logout(request):
    """Denies the token of this request until a minute after it expires, then has its sockets closed."""
    jti = request.auth["jti"]
    server.set(f"{ours}deny:jti:{jti}", "1", exat=request.auth["exp"] + 60)
    announce(op="revoke", jti=jti)
    return Response(status=204)


def revoke_user(user_id):
    """Denies all tokens that the user has so far. A cut-off may only rise, and the time does."""
    now = int(time.time())
    server.set(f"{ours}deny:user:{user_id}", now, ex=30 * 86400)
    announce(op="revoke", user_id=str(user_id), issued_before=now)


@api_view(["POST"])
@permission_classes([IsAuthenticated])
def send(request, name):
    """Sends the body as an event to a group."""
    async_to_sync(get_channel_layer().group_send)(name, request.data)
    return Response({"sent": 1})
