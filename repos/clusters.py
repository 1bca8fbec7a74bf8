"""Changing Clusters, ClusterGroups and Credentials: the one door to them.

Each function is one transaction, which stores the change together with what it asks for: another match, another
delivery, a poll with the new secret. Doorbells ring after the commit. Lock order: Remote, GitRepo, Cluster, Delivery,
each by key. Clusters are locked without their key, so that a delivery that is being made for one need not wait.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import F

from repos.doorbells import ring_on_commit
from repos.drivers import DRIVERS, validate_driver_settings
from repos.events import record_event
from repos.leases import database_now
from repos.models import Cluster, ClusterGroup, Credential, Delivery, GitRepo, Probe, Remote
from repos.remotes import not_before
from repos.selectors import matches
from repos.statements import in_pages
from repos.validators import shown, validate_labels, validate_selector

CLUSTER_SPEC = ("name", "labels", "driver", "settings", "secrets")
GROUP_SPEC = ("name", "selector")
CREDENTIAL_SPEC = ("name", "kind", "username", "secret", "known_hosts")
# How many users of a credential a refusal names.
NAMED = 5

Row = TypeVar("Row", Cluster, ClusterGroup, Credential)


class InUse(ValidationError):
    """What is to be deleted is still needed; the message says by whom."""


# -- clusters ----------------------------------------------------------------------------------------------------


def save_cluster(spec: Mapping[str, Any], pk: int | None = None) -> Cluster:
    """Create a Cluster from `spec` ({field: value}), or change the one with the key `pk` by what `spec` gives.

    `secrets` is {name: text}, the driver's own names; left out, the stored ones stay. A new Cluster and one whose
    labels changed are matched against all targets; a changed driver, setting or secret delivers again what is wanted
    there, under a new sequence. Raises ValidationError and Cluster.DoesNotExist.
    """
    _known(spec, CLUSTER_SPEC)
    with transaction.atomic():
        now = database_now()
        if pk is not None and {"driver", "settings", "secrets"} & set(spec):
            _lock_gitrepos_at(pk)
        cluster, before = _read(Cluster, pk)
        for name, value in spec.items():
            if name != "secrets":
                setattr(cluster, name, value)
        _keeps_its_name(cluster, before)
        cluster.full_clean(exclude=["labels", "settings", "secrets"])
        _named("labels", validate_labels, cluster.labels)
        if cluster.driver not in DRIVERS:
            raise ValidationError({"driver": f"There is no such driver; known are {', '.join(DRIVERS)}."})
        cluster.settings = _named("settings", validate_driver_settings, cluster.driver, cluster.settings)
        if "secrets" in spec:
            cluster.secrets = _driver_secrets(cluster.driver, spec["secrets"])
        elif before is not None and before.driver != cluster.driver:
            cluster.secrets = None
        moved = before is not None and (
            "secrets" in spec or (before.driver, before.settings) != (cluster.driver, cluster.settings)
        )
        relabelled = before is None or before.labels != cluster.labels
        if before is not None and not moved and not relabelled:
            return cluster
        cluster.save()
        if relabelled:
            _match_again([cluster.pk], now)
        if moved:
            _deliver_again(cluster, now)
    return cluster


def delete_cluster(pk: int) -> None:
    """Delete a Cluster and everything known about deliveries to it. What is delivered there stays there.

    To have it removed as well, take the Cluster out of all targets first. Raises Cluster.DoesNotExist.
    """
    with transaction.atomic():
        now = database_now()
        gitrepos = _lock_gitrepos_at(pk)
        cluster = Cluster.objects.select_for_update(of=("self",)).get(pk=pk)
        name = cluster.name
        _forget_deliveries(cluster)
        cluster.delete()
        for gitrepo in gitrepos:
            record_event(gitrepo, "ClusterDeleted", f"{name} was deleted; what was delivered there stays there", now)


def _lock_gitrepos_at(cluster_id: int) -> list[GitRepo]:
    """Lock the GitRepos with a delivery at the cluster: whether they are paused must hold until the commit."""
    there = Delivery.objects.filter(cluster=cluster_id).values("gitrepo")
    return list(GitRepo.objects.select_for_update(of=("self",)).filter(pk__in=there).order_by("pk"))


def _forget_deliveries(cluster: Cluster) -> None:
    """Delete the deliveries at the locked cluster, by their cluster: Django's own delete() names them all in one statement."""
    there = Delivery.objects.filter(cluster=cluster)
    # Locked with their keys, so that no question about one is stored between the two statements.
    list(there.select_for_update().order_by("pk").values_list("pk"))
    Probe.objects.filter(delivery__in=there).delete()
    there._raw_delete(there.db)  # noqa: SLF001


def _driver_secrets(driver: str, secrets: object) -> str | None:
    """The JSON text that is stored encrypted; None for no secrets."""
    known = DRIVERS[driver].secret_names
    if not isinstance(secrets, dict):
        raise ValidationError({"secrets": "Secrets are an object of texts."})
    for name, value in secrets.items():
        if name not in known:
            names = f"known are {', '.join(known)}" if known else "it has none"
            raise ValidationError({"secrets": f"{shown(name)} is no secret of the driver {driver}; {names}."})
        if not isinstance(value, str) or not value:
            raise ValidationError({"secrets": f"{name}: This is a text that is not empty."})
    return json.dumps(secrets) if secrets else None


def _deliver_again(cluster: Cluster, now: datetime) -> None:
    """Want again what is wanted at the cluster: its target is another one now. What ended there stays ended."""
    ended = (Delivery.State.REMOVED, Delivery.State.KEPT)
    rows = Delivery.objects.filter(cluster=cluster).exclude(state__in=ended)
    columns = {
        "sequence": F("sequence") + 1,
        "state": Delivery.State.WAITING,
        "failures": 0,
        "last_error": "",
    }
    # By conditions, since the keys may be more than a statement takes. No row meets both: the GitRepos are locked.
    rows.filter(gitrepo__in=GitRepo.objects.filter(paused=True)).update(**columns, **Delivery.not_due())
    rows.filter(gitrepo__in=GitRepo.objects.filter(paused=False)).update(**columns, **Delivery.due_in(now, 0))
    ring_on_commit("deliver")


# -- groups ------------------------------------------------------------------------------------------------------


def save_group(spec: Mapping[str, Any], pk: int | None = None) -> ClusterGroup:
    """Create a ClusterGroup from `spec`, or change the one with the key `pk`.

    Every cluster that the old or the new selector matches is matched against all targets again. Raises
    ValidationError and ClusterGroup.DoesNotExist.
    """
    _known(spec, GROUP_SPEC)
    with transaction.atomic():
        group, before = _read(ClusterGroup, pk)
        for name, value in spec.items():
            setattr(group, name, value)
        _keeps_its_name(group, before)
        # Django takes an empty selector for none at all; it is one that matches every cluster.
        group.full_clean(exclude=["selector"])
        _named("selector", validate_selector, group.selector)
        if before is not None and before.selector == group.selector:
            return group
        group.save()
        _match_where([group.selector, *([before.selector] if before is not None else [])])
    return group


def delete_group(pk: int) -> None:
    """Delete a ClusterGroup: targets that name it match nothing from now on. Raises ClusterGroup.DoesNotExist."""
    with transaction.atomic():
        group = ClusterGroup.objects.select_for_update(of=("self",)).get(pk=pk)
        selector = group.selector
        group.delete()
        _match_where([selector])


def _match_where(selectors: Iterable[Mapping[str, Any]]) -> None:
    selectors = list(selectors)
    clusters = Cluster.objects.values_list("pk", "labels")
    keys = [pk for pk, labels in clusters if any(matches(selector, labels) for selector in selectors)]
    _match_again(keys, database_now())


def _match_again(keys: list[int], now: datetime) -> None:
    """Make these clusters due for matching; one that is being matched now stays due."""
    for page in in_pages(sorted(keys)):
        rows = Cluster.objects.filter(pk__in=page)
        list(rows.select_for_update(no_key=True).order_by("pk").values_list("pk"))
        rows.update(match_wanted=F("match_wanted") + 1, **Cluster.due_in(now, 0))
    if keys:
        ring_on_commit("control")


# -- credentials -------------------------------------------------------------------------------------------------


def save_credential(spec: Mapping[str, Any], pk: int | None = None) -> Credential:
    """Create a Credential from `spec`, or change the one with the key `pk`; without `secret` the stored one stays.

    Remotes that use it are polled at once, with the new secret; no job is started by that alone. Raises
    ValidationError and Credential.DoesNotExist.
    """
    _known(spec, CREDENTIAL_SPEC)
    with transaction.atomic():
        hosts: set[int] = set()
        if pk is not None:
            remotes = Remote.objects.select_for_update().filter(credential=pk).order_by("pk")
            hosts = set(remotes.values_list("host_id", flat=True))
        credential, before = _read(Credential, pk)
        for name, value in spec.items():
            setattr(credential, name, value)
        _keeps_its_name(credential, before)
        check_credential(credential, spec)
        unchanged = before is not None and all(
            getattr(before, name) == getattr(credential, name) for name in ("kind", "username", "known_hosts")
        )
        if unchanged and "secret" not in spec:
            return credential
        credential.save()
        _wake_all(credential, hosts, database_now())
    return credential


def check_credential(credential: Credential, spec: Mapping[str, Any]) -> None:
    """The rules over several fields of `credential`, which is to be saved by `spec`. Raises ValidationError.

    Whether a secret fits its kind is seen when it is written; the stored one is not decrypted for that.
    """
    credential.full_clean(exclude=["secret"])
    secret = spec.get("secret")
    if "secret" in spec and (not isinstance(secret, str) or not secret.strip()):
        raise ValidationError({"secret": "The secret is text that is not empty: a password, a token or a private key."})
    if "secret" not in spec and not credential.secret:
        raise ValidationError({"secret": "A credential needs its secret."})
    if any(c < " " or c == "\x7f" for c in credential.username) or ":" in credential.username:
        raise ValidationError({"username": "A user name has no colon and no control character in it."})
    if credential.kind == Credential.Kind.SSH:
        if isinstance(secret, str) and "PRIVATE KEY-----" not in secret:
            raise ValidationError({"secret": "This is no private key: it has a line -----BEGIN … PRIVATE KEY-----."})
        if not credential.known_hosts.strip():
            sentence = "An SSH credential needs its servers' public keys: the lines that ssh-keyscan HOST prints."
            raise ValidationError({"known_hosts": sentence})
        return
    if isinstance(secret, str) and any(c < " " or c == "\x7f" for c in secret):
        raise ValidationError({"secret": "A password or token is one line without control characters."})
    if credential.kind == Credential.Kind.BASIC and not credential.username:
        raise ValidationError({"username": "A user name and password need the user name; without one, store a token."})


def _wake_all(credential: Credential, hosts: Collection[int], now: datetime) -> None:
    """As repos.remotes.wake for each of the credential's locked remotes, in one statement for each of their `hosts`.

    One that was made since they were locked is woken with them: a poll of it may have read the old secret.
    """
    for host in sorted(hosts):
        due = not_before(host, credential.pk, now)
        Remote.objects.filter(credential=credential, host=host).update(
            wakes=F("wakes") + 1, next_poll_at=due, wait_seconds=(due - now).total_seconds()
        )
    if hosts:
        ring_on_commit("poll")


def delete_credential(pk: int) -> None:
    """Delete a Credential that nothing uses. Raises InUse and Credential.DoesNotExist."""
    with transaction.atomic():
        credential = Credential.objects.select_for_update(of=("self",)).get(pk=pk)
        users = list(GitRepo.objects.filter(credential=credential).order_by("name").values_list("name", "deleted_at"))
        names = [name for name, deleted_at in users if deleted_at is None]
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise InUse(f"The credential is used by {', '.join(names[:NAMED])}{more}: give those another one first.")
        if users:
            raise InUse("GitRepos that use the credential are still being deleted: try again when they are gone.")
        if Remote.objects.filter(credential=credential).exists():
            raise InUse("The credential was used until a moment ago and is still being let go: try again in a minute.")
        credential.delete()


# -- helpers -----------------------------------------------------------------------------------------------------


def _known(spec: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := set(spec) - set(known):
        raise ValidationError(dict.fromkeys(unknown, "not a field of the spec"))


def _read(model: type[Row], pk: int | None) -> tuple[Row, Row | None]:
    """A new row and None, or the locked row and another copy of it as it was."""
    if pk is None:
        return model(), None
    locked = model._default_manager.select_for_update(of=("self",), no_key=True).get(pk=pk)
    return locked, model._default_manager.get(pk=pk)


def _keeps_its_name(row: models.Model, before: models.Model | None) -> None:
    """Targets, GitRepos and URLs know these rows by name."""
    if before is not None and getattr(row, "name") != getattr(before, "name"):  # noqa: B009 (for mypy)
        kind = row._meta.verbose_name
        raise ValidationError({"name": f"A {kind} keeps its name: create a new one and delete this one."})


def _named(field: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function`, and put what it refuses under the name of the `field`."""
    try:
        return function(*arguments)
    except ValidationError as error:
        raise ValidationError({field: error.messages}) from None
