"""Users and clients for the tests of the doors."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from rest_framework.authtoken.models import Token
from rest_framework.test import APIClient

ClientOf = Callable[..., APIClient]


@pytest.fixture
def client_of(db: None) -> ClientOf:
    """A REST client with the token of a new user who has these permissions of `repos`, as in view_gitrepo."""

    def make(name: str, *permissions: str) -> APIClient:
        user = User.objects.create_user(name)
        for codename in permissions:
            user.user_permissions.add(Permission.objects.get(content_type__app_label="repos", codename=codename))
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Token {Token.objects.create(user=user).key}")
        return client

    return make


@pytest.fixture
def api(admin_user: User) -> APIClient:
    """A REST client with the token of a superuser."""
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Token {Token.objects.create(user=admin_user).key}")
    return client
