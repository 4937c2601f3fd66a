from django.urls import path

from saas import views

urlpatterns = [
    path("", views.page),
    path("signup/", views.sign_up),
]
