"""The paths of every company."""

from django.urls import path
from rest_framework_simplejwt.views import TokenObtainPairView

from . import views

urlpatterns = [
    path("api/token/", TokenObtainPairView.as_view()),
    path("api/rooms/<slug:room>/send/", views.send),
    path("api/logout/", views.logout),
    path("api/password/", views.password),
]
