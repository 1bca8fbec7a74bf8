"""A plain Redis client beside Celery's, for questions about the broker (how long is a queue?)."""

import functools
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

# Seconds. A question about the broker is never worth more waiting than this: whoever asks goes on without the
# answer.
TIMEOUT = 1.0


def redis_py_url(url: str) -> str:
    """`url` as redis-py writes it: kombu's `redis+socket:///path?virtual_host=1` becomes
    `unix:///path?db=1`.
    """
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    query = [("db" if key == "virtual_host" else key, value) for key, value in parse_qsl(parts.query)]
    return f"unix://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else "")


@functools.cache
def redis_client() -> redis.Redis:
    """This process's client for settings.REDIS_URL. It connects when first asked, or raises RedisError."""
    return redis.Redis.from_url(
        redis_py_url(settings.REDIS_URL),
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        # One quick try: the callers have a next second.
        retry=Retry(NoBackoff(), 0),
    )
