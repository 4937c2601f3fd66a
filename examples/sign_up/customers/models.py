"""The customers."""

import secrets
import time
import uuid

import jwt
from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models, transaction

from customers import tenants

# Names of tenants, which are names of hosts too.
name_of_a_tenant = RegexValidator(r"\A[a-z0-9]+(-[a-z0-9]+)*\Z", "Small letters, digits and single hyphens.")


def new_key():
    return secrets.token_hex(32)


class Customer(models.Model):
    """A customer, who is a tenant of Lockgate. Both are saved and deleted together."""

    name = models.CharField(max_length=40, unique=True, validators=[name_of_a_tenant])
    signing_key = models.CharField(max_length=64, default=new_key)
    # It verifies the tokens that were given out before the key was rotated.
    previous_key = models.CharField(max_length=64, blank=True)

    @property
    def host(self):
        return settings.SOCKET_HOST.format(name=self.name)

    def socket_url(self):
        return settings.SOCKET_URL.format(host=self.host)

    def keys(self):
        return [key for key in (self.signing_key, self.previous_key) if key]

    def token(self, user_id, lifetime=300):
        now = int(time.time())
        claims = {"token_type": "access", "user_id": user_id, "jti": uuid.uuid4().hex, "iat": now, "exp": now + lifetime}
        return jwt.encode(claims, self.signing_key, "HS256")

    def save(self, *args, **kwargs):
        # A tenant that is refused, or that cannot be put now, leaves no customer behind.
        with transaction.atomic():
            super().save(*args, **kwargs)
            tenants.put(self)

    def delete(self, *args, **kwargs):
        with transaction.atomic():
            deleted = super().delete(*args, **kwargs)
            tenants.delete(self.name)
        return deleted

    def rotate_key(self):
        """Signs with a new key from now on. Call it again, or `forget_previous_key`, once the old tokens have expired."""
        self.previous_key, self.signing_key = self.signing_key, new_key()
        self.save()

    def forget_previous_key(self):
        self.previous_key = ""
        self.save()
