"""A user whose key is a UUID."""

import uuid

from django.contrib.auth.models import AbstractUser
from django.db import models


class UuidUser(AbstractUser):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    plan = models.CharField(max_length=20, default="free")
