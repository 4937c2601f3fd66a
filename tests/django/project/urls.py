"""The token views of simplejwt, where its documentation puts them, and what a back end of sockets has besides."""

from django.urls import path
from rest_framework_simplejwt.views import TokenObtainPairView, TokenRefreshView

from . import views

urlpatterns = [
    path("api/token/", TokenObtainPairView.as_view()),
    path("api/token/refresh/", TokenRefreshView.as_view()),
    path("api/logout/", views.logout),
    path("api/groups/<str:name>/send/", views.send),
]
