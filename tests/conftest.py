"""The database that tests run on, and users and clients for the tests of the doors."""

from collections.abc import Callable, Generator

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from rest_framework.authtoken.models import Token
from rest_framework.test import APIClient

ClientOf = Callable[..., APIClient]

# How fast a machine is that is busy with other things says nothing of the rule that is tried.
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SQLite's tests run on a file, as the program does: there threads and processes lock one another as they should."""
    if connection.vendor == "sqlite":
        connection.settings_dict["TEST"]["NAME"] = str(tmp_path_factory.mktemp("database") / "test.sqlite3")


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
def api(db: None) -> APIClient:
    """A REST client with the token of a superuser, who has no password: hashing one takes longer than most tests."""
    client = APIClient()
    user = User.objects.create_superuser("operator")
    client.credentials(HTTP_AUTHORIZATION=f"Token {Token.objects.create(user=user).key}")
    return client


@pytest.fixture
def page(db: None) -> Client:
    """A browser in which a superuser is logged in."""
    client = Client()
    client.force_login(User.objects.create_superuser("browser"))
    return client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Some tests log lone surrogates, and a report with one in its captured log cannot travel between processes."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
