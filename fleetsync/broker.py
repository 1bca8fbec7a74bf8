"""Celery's settings, each with its reason. Read lazily by fleetsync.celery, in Celery's own lower-case
names.
"""

import os

from django.conf import settings
from kombu import Exchange, Queue

from fleetsync.celery import QUEUES, private_queue
from fleetsync.processes import OWN_QUEUE

broker_url = settings.REDIS_URL
# Only JSON: a pickled message would run whatever its sender likes.
task_serializer = "json"
accept_content = ["json"]
# What happened is in the database; a result backend would be a second, forgetful, truth.
task_ignore_result = True
# Early acks: a late-acked task that is in flight while Redis goes away kills its worker (celery 5.7.0). A
# lost doorbell costs one tick.
task_acks_late = False
# A worker holds no message that it isn't working on, so a frozen worker holds nobody's doorbell.
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
# Plain direct queues, known beforehand: a message to a misspelt queue is an error, not a new queue.
task_queues = [Queue(name, Exchange(name, type="direct"), routing_key=name) for name in QUEUES]
if OWN_QUEUE in os.environ:
    task_queues.append(private_queue(os.environ[OWN_QUEUE]))
task_create_missing_queues = False
task_default_queue = "control"
task_default_exchange = "control"
task_default_routing_key = "control"
# No remote control and no events: nobody listens, and each costs a fan-out in Redis.
worker_enable_remote_control = False
worker_send_task_events = False
# A doorbell that cannot be sent now is not worth waiting for: the tick rings again.
task_publish_retry = False
broker_connection_timeout = 2
broker_transport_options = {
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "health_check_interval": 25,
}
# Workers outlive their broker, for however long it is away.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
worker_cancel_long_running_tasks_on_connection_loss = False
# A child that grew beyond this many KiB is replaced; what it held is leased.
worker_max_memory_per_child = 400_000
worker_hijack_root_logger = False
worker_redirect_stdouts = False
# Celery would connect to the database anew for each task, which costs as much as the tick itself. Instead each task begins
# with a look at the connection, as each request does (fleetsync/celery.py). Only this name of the setting is read.
CELERY_DB_REUSE_MAX = 10**12
enable_utc = True
timezone = "UTC"
imports = ["workers.tasks"]
