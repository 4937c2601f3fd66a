"""Puts the tenant of every customer: after the document has another form, or for customers who were there before Lockgate."""

from django.core.management import BaseCommand

from customers import tenants
from customers.models import Customer


class Command(BaseCommand):
    help = "Puts the tenant of every customer into Lockgate's registry."

    def handle(self, **options):
        for customer in Customer.objects.order_by("name"):
            tenants.put(customer)
            self.stdout.write(customer.name)
