"""/metrics: what the database knows, for Prometheus. Every web process answers the same, since none counts for itself."""

from collections.abc import Iterable, Iterator

from django.db.models import Count, Min
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from repos.breaker import is_open
from repos.display_states import with_display_state
from repos.doctor.examination import examine
from repos.leases import claimable, database_now
from repos.metrics import BUCKETS, PUSH_TO_APPLIED
from repos.models import Counter, Delivery, GitRepo, Host, Remote, SyncJob
from repos.status import READY

PREFIX = "fleetsync_"
# name of the Counter: (its label, what it counts)
COUNTERS = {
    "polls": ("result", "Polls of remotes, by result."),
    "sync_jobs": ("result", "Ends of sync jobs, by result."),
    "deliveries": ("result", "Ends of deliveries, by result."),
    "repairs": ("kind", "What the resync had to repair; should stay 0."),
    "fenced_writes": ("stage", "Results that were dropped because somebody else had the lease."),
    "healed_schedules": ("model", "Due instants beyond their horizon that were set to now."),
    "pruned": ("kind", "What retention removed because nothing needs it any more, by kind."),
}


class DatabaseCollector(Collector):
    """Reads everything at each scrape, with a number of queries that does not grow with the rows."""

    def collect(self) -> Iterator[Metric]:
        yield from counted()
        yield from overdue()
        yield hosts_open()
        yield by_state("sync_jobs", "Sync jobs by state.", SyncJob.State.values, SyncJob)
        yield by_state("deliveries", "Deliveries by state.", Delivery.State.values, Delivery)
        yield from of_gitrepos()
        yield findings()


def counted() -> Iterable[Metric]:
    """The counters that workers keep in the database, and the histogram made of such."""
    rows: dict[str, dict[str, float]] = {}
    for name, label, value in Counter.objects.order_by("name", "label").values_list("name", "label", "value"):
        rows.setdefault(name, {})[label] = value
    for name, (label, text) in COUNTERS.items():
        family = CounterMetricFamily(f"{PREFIX}{name}", text, labels=[label])
        for pair, value in rows.get(name, {}).items():
            family.add_metric([pair.partition("=")[2]], value)
        yield family
    times = rows.get(PUSH_TO_APPLIED, {})
    count = times.get("count", 0.0)
    buckets = [(str(bound), times.get(f"le={bound:g}", 0.0)) for bound in BUCKETS]
    yield HistogramMetricFamily(
        f"{PREFIX}{PUSH_TO_APPLIED}",
        "Seconds from a push, or from its first sight, to its being applied at a cluster.",
        buckets=[*buckets, ("+Inf", count)],
        sum_value=times.get("sum", 0.0),
    )


def overdue() -> Iterable[Metric]:
    now = database_now()
    due = Remote.objects.filter(claimable(Remote, now)).aggregate(rows=Count("pk"), oldest=Min("next_poll_at"))
    waited = max(0.0, (now - due["oldest"]).total_seconds()) if due["oldest"] is not None else 0.0
    yield GaugeMetricFamily(
        f"{PREFIX}overdue_remotes", "Remotes that are due and that nobody polls at this moment.", value=due["rows"]
    )
    yield GaugeMetricFamily(
        f"{PREFIX}overdue_seconds_max", "How long the one of them has been due that has waited longest.", value=waited
    )


def hosts_open() -> Metric:
    text = "Git hosts that answer no poll, and are asked by one at a time until they do."
    return GaugeMetricFamily(f"{PREFIX}hosts_open", text, value=Host.objects.filter(is_open()).count())


def by_state(name: str, text: str, states: list[str], model: type[SyncJob] | type[Delivery]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{name}", text, labels=["state"])
    counts = dict(model._default_manager.order_by().values_list("state").annotate(Count("pk")))
    for state in states:
        family.add_metric([state], counts.get(state, 0))
    return family


def of_gitrepos() -> Iterable[Metric]:
    """One series of each for every GitRepo; a deleted one's are gone."""
    lag = GaugeMetricFamily(
        f"{PREFIX}gitrepo_lag_seconds",
        "How late the poll is that is due and not begun, or else how late the last one was.",
        labels=["gitrepo"],
    )
    failures = GaugeMetricFamily(
        f"{PREFIX}gitrepo_consecutive_failures", "Polls in a row without an answer or its ref.", labels=["gitrepo"]
    )
    ready = GaugeMetricFamily(f"{PREFIX}gitrepo_ready", "1 if its display state is Ready, else 0.", labels=["gitrepo"])
    now = database_now()
    rows = with_display_state(GitRepo.objects.alive()).order_by("name")
    for name, state, remote_failures, ref_failures, last_lag, next_poll_at, lease_until in rows.values_list(
        "name",
        "shown_state",
        "remote__consecutive_failures",
        "ref_failures",
        "remote__last_lag_seconds",
        "remote__next_poll_at",
        "remote__lease_until",
    ).iterator():
        waits = next_poll_at is not None and next_poll_at < now and (lease_until is None or lease_until <= now)
        seconds = (now - next_poll_at).total_seconds() if waits else last_lag or 0.0
        lag.add_metric([name], seconds)
        failures.add_metric([name], remote_failures or ref_failures)
        ready.add_metric([name], float(state == READY))
    return [lag, failures, ready]


def findings() -> Metric:
    """What the doctor finds in the database, by kind; 0 for each kind where all is well."""
    family = GaugeMetricFamily(f"{PREFIX}findings", "What the doctor finds now, by kind.", labels=["kind"])
    for kind, count in examine().totals.items():
        family.add_metric([kind], count)
    return family


registry = CollectorRegistry(auto_describe=False)
registry.register(DatabaseCollector())


@require_safe
@never_cache
def metrics(_: HttpRequest) -> HttpResponse:
    """In the text format alone: OpenMetrics would not tell the gauge `sync_jobs` from the counter `sync_jobs_total`."""
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
