"""The test back end as a process: one JSON object per line in, one answer per line out.

A request is {"op": NAME, ...}; the answer {"ok": VALUE} or {"error": TEXT}. Requests are carried out in order, in
one event loop, as a Django view or task would: real migrations, real token views, real group_send.
"""

import asyncio
import json
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

import django  # noqa: E402

django.setup()

from asgiref.sync import async_to_sync, sync_to_async  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.worker import Worker  # noqa: E402
from django.contrib.auth import get_user_model  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connections  # noqa: E402
from django.test import Client  # noqa: E402

from project.asgi import application  # noqa: E402

layer = get_channel_layer()


@sync_to_async
def migrate():
    call_command("migrate", verbosity=0, interactive=False)


@sync_to_async
def create_user(username, password, **fields):
    user = get_user_model().objects.create_user(username, password=password, **fields)
    return {"id": str(user.pk)}


@sync_to_async
def update_user(username, password=None, **fields):
    user = get_user_model().objects.get(username=username)
    if password is not None:
        user.set_password(password)
    for name, value in fields.items():
        setattr(user, name, value)
    user.save()
    return {"id": str(user.pk)}


@sync_to_async
def token(username, password):
    """What a browser gets from the token view."""
    answer = Client().post("/api/token/", {"username": username, "password": password}, "application/json")
    if answer.status_code != 200:
        raise RuntimeError(f"the token view answered {answer.status_code}: {answer.content!r}")
    return answer.json()


@sync_to_async
def refresh(refresh):
    answer = Client().post("/api/token/refresh/", {"refresh": refresh}, "application/json")
    if answer.status_code != 200:
        raise RuntimeError(f"the refresh view answered {answer.status_code}: {answer.content!r}")
    return answer.json()


@sync_to_async
def logout(token):
    """What a page does when its user leaves."""
    answer = Client().post("/api/logout/", headers={"authorization": f"Bearer {token}"})
    if answer.status_code != 204:
        raise RuntimeError(f"the logout view answered {answer.status_code}: {answer.content!r}")


@sync_to_async
def send_view(token, group, event):
    """An event to a group by a request, as a page would have it sent."""
    headers = {"authorization": f"Bearer {token}"}
    answer = Client().post(f"/api/groups/{group}/send/", event, "application/json", headers=headers)
    if answer.status_code != 200:
        raise RuntimeError(f"the view answered {answer.status_code}: {answer.content!r}")
    return answer.json()


@sync_to_async
def disconnect():
    """Lets go of the database, so that it can be copied or dropped."""
    connections.close_all()


@sync_to_async
def user_models():
    """A user of every shape of model, and the configuration that `lockgate_config` prints for each."""
    from models_of_users import shapes

    return shapes.all_of_them()


async def group_send(group, events):
    for event in events:
        await layer.group_send(group, event)
    return len(events)


async def group_send_sync(group, events):
    """As code without async does: each call runs in an event loop of its own, and ends it."""

    def send():
        for event in events:
            async_to_sync(layer.group_send)(group, event)

    # A thread of asgiref's would run the calls in this loop.
    await asyncio.get_running_loop().run_in_executor(None, send)
    return len(events)


async def listen(group):
    """A consumer of this back end: a channel that is a member of `group`."""
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    return channel


async def group_add(group, channel):
    await layer.group_add(group, channel)


async def forget_connections():
    """For the core layer after a restart of Redis: redis-py finds out about each dead connection with a failed command."""
    await layer.close_pools()


async def send(channel, message):
    await layer.send(channel, message)


async def receive(channel, timeout=5):
    return await asyncio.wait_for(layer.receive(channel), timeout)


workers = []


async def work(channels):
    """`manage.py runworker`, beside everything else that this process does."""
    worker = Worker(application=application, channels=channels, channel_layer=layer)
    workers.append(asyncio.create_task(worker.handle()))


numbering = []
ended = asyncio.Event()


async def send_numbers(tenant, group, pace, padding):
    """Odd numbers, each once: one that failed may be sent all the same."""
    sent, number = [], 1
    while not ended.is_set():
        event = {"type": "n", "tenant": tenant, "group": group, "number": number, "padding": "x" * padding}
        try:
            await layer.group_send(f"g_{group}", event)
            sent.append(number)
        except Exception as error:  # Redis is away, and the test knows
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        number += 2
        await asyncio.sleep(pace)
    return sent


async def publish_numbers(tenant, groups, pace, padding):
    numbering.extend(asyncio.create_task(send_numbers(tenant, group, pace, padding)) for group in range(groups))


async def end_numbers():
    ended.set()
    return await asyncio.gather(*numbering)


OPERATIONS = {
    "migrate": migrate,
    "create_user": create_user,
    "update_user": update_user,
    "token": token,
    "refresh": refresh,
    "logout": logout,
    "send_view": send_view,
    "disconnect": disconnect,
    "user_models": user_models,
    "group_send": group_send,
    "group_send_sync": group_send_sync,
    "group_add": group_add,
    "publish_numbers": publish_numbers,
    "end_numbers": end_numbers,
    "send": send,
    "forget_connections": forget_connections,
    "listen": listen,
    "receive": receive,
    "work": work,
}


async def main():
    loop = asyncio.get_running_loop()
    # What libraries print must not stand between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        try:
            answer = {"ok": await OPERATIONS[request.pop("op")](**request)}
        except Exception as error:  # the test that asked reports it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


asyncio.run(main())
