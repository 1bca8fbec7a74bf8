"""All settings, from the environment, a `.env` file, or `NAME_FILE` for secrets; each has a default for a
bare machine.

Durations are written as in Go and Fleet (`15s`, `1h30m`) and are kept here in seconds.
"""

import os
from pathlib import Path

import environ

from fleetsync import logging
from fleetsync.durations import parse_duration
from fleetsync.keys import kept_secret

BASE_DIR = Path(__file__).resolve().parent.parent

env = environ.FileAwareEnv()
env.read_env(BASE_DIR / ".env")


def seconds(name: str, default: str) -> float:
    """The duration in the variable `name`, in seconds; nonsense stops the start with the variable's name."""
    text = env.str(name, default)
    try:
        return parse_duration(text)
    except ValueError as error:
        raise environ.ImproperlyConfigured(f"{name}: {error}") from error


DEBUG = env.bool("DEBUG", True)
DATA_DIR = Path(env.str("DATA_DIR", str(BASE_DIR / "var"))).resolve()
PORT = env.int("PORT", 8000)
# Where the web process listens: this machine only, unless a container or a proxy elsewhere needs more.
WEB_ADDRESS = env.str("WEB_ADDRESS", "127.0.0.1")
WEB_PROCESSES = env.int("WEB_PROCESSES", 2)
WEB_THREADS = env.int("WEB_THREADS", 8)

if DEBUG:
    SECRET_KEY = env.str("SECRET_KEY", "") or kept_secret(DATA_DIR, "secret_key")
    ENCRYPTION_KEYS = env.list("ENCRYPTION_KEYS", default=[]) or [kept_secret(DATA_DIR, "encryption_keys")]
else:
    # Empty ones are refused by the system checks with a sentence that says what to do.
    SECRET_KEY = env.str("SECRET_KEY", "")
    ENCRYPTION_KEYS = env.list("ENCRYPTION_KEYS", default=[])

ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"] if DEBUG else [])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

# -- what fleetsync does -------------------------------------------------------------------------------------

GITREPO_SYNC_PERIOD = seconds("GITREPO_SYNC_PERIOD", "2h")
GITREPO_RECONCILER_WORKERS = env.int("GITREPO_RECONCILER_WORKERS", 50)
GITREPO_POLLING_INTERVAL = seconds("GITREPO_POLLING_INTERVAL", "15s")
GITREPO_POLLING_JITTER = env.float("GITREPO_POLLING_JITTER", 0.10)
GITREPO_BACKOFF_CAP = seconds("GITREPO_BACKOFF_CAP", "5m")
GIT_TIMEOUT = seconds("GIT_TIMEOUT", "30s")
GIT_FETCH_TIMEOUT = seconds("GIT_FETCH_TIMEOUT", "10m")
GIT_HOST_CONCURRENCY = env.int("GIT_HOST_CONCURRENCY", 20)
# Polls in a row without an answer from a host, from which on it is asked by one poll at a time.
GIT_HOST_BREAKER = env.int("GIT_HOST_BREAKER", 10)
GIT_ALLOW_HTTP = env.bool("GIT_ALLOW_HTTP", False)
GIT_ALLOWED_NETWORKS = env.list("GIT_ALLOWED_NETWORKS", default=[])
GIT_FILE_ROOT = env.str("GIT_FILE_ROOT", "")
GIT_FETCH_MAX_BYTES = env.int("GIT_FETCH_MAX_BYTES", 2 * 1024**3)
# auto: a new mirror is partial where that pays (workers/fetch/partial.py); off: every mirror has all files.
GIT_PARTIAL_CLONE = env.str("GIT_PARTIAL_CLONE", "auto").strip().lower()
GIT_MAX_REFS = env.int("GIT_MAX_REFS", 100_000)
DELIVERY_MAX_REMOVED_PART = env.float("DELIVERY_MAX_REMOVED_PART", 0.5)
# Folders that a Cluster with the driver `directory` may name lie below this one.
DELIVERY_DIRECTORY_ROOT = env.str("DELIVERY_DIRECTORY_ROOT", str(DATA_DIR / "clusters"))
DELIVERY_TIMEOUT = seconds("DELIVERY_TIMEOUT", "1m")
DELIVERY_CLUSTER_CONCURRENCY = env.int("DELIVERY_CLUSTER_CONCURRENCY", 4)
DELIVERY_WORKERS = env.int("DELIVERY_WORKERS", 8)
BUNDLE_MAX_BYTES = env.int("BUNDLE_MAX_BYTES", 200 * 1024 * 1024)
BUNDLE_MAX_FILES = env.int("BUNDLE_MAX_FILES", 50_000)
BUNDLE_MAX_FILE_BYTES = env.int("BUNDLE_MAX_FILE_BYTES", 50 * 1024 * 1024)
# Retention: what is kept of each GitRepo, by number and by age, and for how long what nothing needs is kept.
RETENTION_REVISIONS = env.int("RETENTION_REVISIONS", 100)
RETENTION_AGE = seconds("RETENTION_AGE", "720h")
RETENTION_EVENTS = env.int("RETENTION_EVENTS", 1000)
RETENTION_EVENT_AGE = seconds("RETENTION_EVENT_AGE", "168h")
RETENTION_HISTORY_AGE = seconds("RETENTION_HISTORY_AGE", "8760h")
BUNDLE_GRACE = seconds("BUNDLE_GRACE", "6h")
MIRROR_UNUSED = seconds("MIRROR_UNUSED", "168h")
# 0: no limit.
MIRROR_MAX_BYTES = env.int("MIRROR_MAX_BYTES", 0)
WORKER_QUEUES = env.list("WORKER_QUEUES", default=["control", "poll", "sync", "deliver"])
CONTROL_PROCESSES = env.int("CONTROL_PROCESSES", 2)
POLL_PROCESSES = env.int("POLL_PROCESSES", 2)
SYNC_PROCESSES = env.int("SYNC_PROCESSES", 2)
DELIVER_PROCESSES = env.int("DELIVER_PROCESSES", 2)
# Between SIGTERM and SIGKILL. What is killed is leased and is done again.
STOP_GRACE = seconds("STOP_GRACE", "10s")

# A worker that gives no sign of life, or takes no message while some wait, is ended after this time.
WATCHDOG = seconds("WATCHDOG", "60s")

# A lease is what a worker may keep without a sign of life. A poll's is not renewed: it outlasts GIT_TIMEOUT
# instead.
POLL_LEASE = seconds("POLL_LEASE", f"{int(GIT_TIMEOUT) + 30}s")
JOB_LEASE = seconds("JOB_LEASE", "60s")
DELIVERY_LEASE = seconds("DELIVERY_LEASE", "60s")
# How long one task goes on claiming before it makes room for the next.
SESSION_BUDGET = seconds("SESSION_BUDGET", "20s")

MIRROR_DIR = Path(env.str("MIRROR_DIR", str(DATA_DIR / "mirrors")))
BUNDLE_DIR = Path(env.str("BUNDLE_DIR", str(DATA_DIR / "bundles")))
# Names the machine that a mirror lies on: containers that share a cache folder share a name.
WORKER_HOST = env.str("WORKER_HOST", os.uname().nodename)

# -- Django --------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "rest_framework.authtoken",
    "django_filters",
    "drf_spectacular",
    "django_celery_beat",
    "simple_history",
    "django_structlog",
    "fleetsync.apps.FleetsyncConfig",
    "repos.apps.ReposConfig",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_structlog.middlewares.RequestMiddleware",
    "simple_history.middleware.HistoryRequestMiddleware",
]

ROOT_URLCONF = "fleetsync.urls"
WSGI_APPLICATION = "fleetsync.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        # Before those of the apps: the admin's own page frame is extended there.
        "DIRS": [BASE_DIR / "repos" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": env.db_url("DATABASE_URL", f"sqlite:///{DATA_DIR}/fleetsync.sqlite3")}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    DATABASES["default"]["OPTIONS"] = {
        # A transaction that reads first and writes later fails at once on a busy database, whatever the
        # timeout: taking the write lock at BEGIN makes it wait its turn instead.
        "transaction_mode": "IMMEDIATE",
        "timeout": 30,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
else:
    DATABASES["default"]["CONN_MAX_AGE"] = 60
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
    # A server that vanished without a word must not keep a connection, and with it a task, waiting for ever.
    for _option, _value in {
        "connect_timeout": 5,
        "tcp_user_timeout": 10_000,  # milliseconds
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }.items():
        DATABASES["default"].setdefault("OPTIONS", {}).setdefault(_option, _value)
    # What a connection asks often is planned once: planning takes a third of PostgreSQL's time for a commit. After a migration
    # that changes a column's type, such a statement fails until its connection is CONN_MAX_AGE old.
    if env.bool("DATABASE_PREPARED_STATEMENTS", True):
        DATABASES["default"]["OPTIONS"] |= {"server_side_binding": True, "prepare_threshold": 5}

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
FORMAT_MODULE_PATH = "fleetsync.formats"

STATIC_URL = "static/"
STATIC_ROOT = Path(env.str("STATIC_ROOT", str(BASE_DIR / "static")))
WHITENOISE_USE_FINDERS = DEBUG
# Said here, so that the tests, which run with DEBUG off, do not look through every file for each client.
WHITENOISE_AUTOREFRESH = DEBUG
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

# Behind a proxy that ends TLS, which production is: see `check --deploy`.
SECURE_COOKIES = env.bool("SECURE_COOKIES", not DEBUG)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_COOKIES
SECURE_SSL_REDIRECT = env.bool("SECURE_SSL_REDIRECT", not DEBUG)
SECURE_HSTS_SECONDS = env.int("SECURE_HSTS_SECONDS", 0 if DEBUG else 31_536_000)
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = not DEBUG
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if env.bool("BEHIND_TLS_PROXY", False) else None
# The health and metrics doors are asked by machines inside the network, over plain http.
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$"]
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "rest_framework.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
}
SPECTACULAR_SETTINGS = {
    "TITLE": "fleetsync",
    "DESCRIPTION": "Keeps Git repositories and downstream clusters in step.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
}

# -- Celery's broker -----------------------------------------------------------------------------------------

# A socket below the data folder: nobody else on the machine or the network can reach it.
REDIS_URL = env.str("REDIS_URL", f"redis+socket://{DATA_DIR}/redis.sock")

# Tests stop processes at chosen places by files in this folder (fleetsync/failpoints.py).
FAILPOINTS_DIR = env.str("FAILPOINTS_DIR", "")

LOG_FORMAT = env.str("LOG_FORMAT", "console" if DEBUG else "json")
LOG_LEVEL = env.str("LOG_LEVEL", "INFO").upper()
LOGGING = logging.configure(LOG_FORMAT, LOG_LEVEL)
