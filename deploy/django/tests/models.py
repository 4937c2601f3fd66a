"""User models that differ from Django's own."""

import uuid

from django.contrib.auth.models import AbstractBaseUser
from django.db import models


class Member(AbstractBaseUser):
    """A UUID, an e-mail address in place of a name, and columns that have their usual names."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True)
    is_active = models.BooleanField(default=True)
    USERNAME_FIELD = "email"


class Customer(AbstractBaseUser):
    """A key of text under another name, no column is_active, and a name for the table that has to be quoted."""

    number = models.CharField(primary_key=True, max_length=20)
    USERNAME_FIELD = "number"

    class Meta:
        db_table = "our-customers"


class Renamed(AbstractBaseUser):
    """Other names for columns."""

    code = models.CharField(unique=True, max_length=20, db_column="short_code")
    username = models.CharField(unique=True, max_length=20, db_column="login")
    is_active = models.BooleanField(default=True, db_column="enabled")
    USERNAME_FIELD = "username"


class Employee(Member):
    """Two tables: most of its columns are in the other one."""

    room = models.CharField(max_length=20)


class Party(models.Model):
    """Has the id of its children, and nothing that a gateway reads."""


class Staff(Party, AbstractBaseUser):
    username = models.CharField(unique=True, max_length=20)
    badge = models.IntegerField(unique=True)
    is_active = models.BooleanField(default=True)
    USERNAME_FIELD = "username"


class Computed(AbstractBaseUser):
    """Activity that no column tells."""

    username = models.CharField(unique=True, max_length=20)
    USERNAME_FIELD = "username"

    @property
    def is_active(self):
        return bool(self.username)
