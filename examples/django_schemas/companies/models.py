"""The schemas: one row for each company, in the public schema."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Company(TenantMixin):
    name = models.CharField(max_length=100)


class Domain(DomainMixin):
    pass
