"""GitRepos, Clusters, ClusterGroups and Credentials in JSON. Rules of one field are the model's validators."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from repos.api.fields import (
    TEXTS,
    CredentialName,
    Flag,
    Paths,
    Selector,
    Settings,
    StrictSerializer,
    Targets,
    Text,
    Texts,
    Whole,
    rules,
)
from repos.models import Cluster, ClusterGroup, Credential, GitRepo
from repos.status import DISPLAY_STATES, facts_of, status_json

LARGEST = 2**63 - 1


class ConditionSerializer(serializers.Serializer[Any]):
    type = serializers.CharField()
    status = serializers.ChoiceField(choices=["True", "False"])
    reason = serializers.CharField(allow_blank=True)
    message = serializers.CharField(allow_blank=True)
    last_transition_time = serializers.DateTimeField(allow_null=True)


class StatusSerializer(serializers.Serializer[Any]):
    """Derived from rows on reading: see repos.status. Describes what is there; nothing is written through it."""

    display_state = serializers.ChoiceField(choices=list(DISPLAY_STATES))
    message = serializers.CharField(allow_blank=True)
    commit = serializers.CharField(allow_blank=True, help_text="The newest commit that all matched clusters have.")
    wanted_commit = serializers.CharField(allow_blank=True)
    observed_commit = serializers.CharField(allow_blank=True)
    observed_generation = serializers.IntegerField()
    observed_force_sync_generation = serializers.IntegerField()
    conditions = ConditionSerializer(many=True)
    last_poll_at = serializers.DateTimeField(allow_null=True)
    last_success_at = serializers.DateTimeField(allow_null=True)
    next_poll_at = serializers.DateTimeField(allow_null=True)
    poll_lag_seconds = serializers.FloatField(allow_null=True)
    consecutive_failures = serializers.IntegerField()
    last_error = serializers.CharField(allow_blank=True)
    ready_clusters = serializers.CharField()


class GitRepoSerializer(StrictSerializer):
    """A GitRepo. `context["statuses"]` may give the status of a whole page by primary key."""

    name = Text(max_length=63, validators=rules(GitRepo, "name"))
    url = Text(max_length=2048, validators=rules(GitRepo, "url"))
    branch = Text(default="", allow_blank=True, max_length=255, validators=rules(GitRepo, "branch"))
    tag = Text(default="", allow_blank=True, max_length=255, validators=rules(GitRepo, "tag"))
    semver = Text(default="", allow_blank=True, max_length=255, validators=rules(GitRepo, "semver"))
    commit = Text(default="", allow_blank=True, max_length=64, validators=rules(GitRepo, "commit"))
    paths = Paths(default=list, validators=rules(GitRepo, "paths"))
    polling_interval = Text(
        default="",
        allow_blank=True,
        max_length=64,
        validators=rules(GitRepo, "polling_interval"),
        help_text='As in 15s or 1h30m; "" is the default, GITREPO_POLLING_INTERVAL.',
    )
    disable_polling = Flag(default=False)
    paused = Flag(default=False)
    credential = CredentialName(default=None)
    ca_bundle = Text(default="", allow_blank=True, validators=rules(GitRepo, "ca_bundle"))
    insecure_skip_tls_verify = Flag(default=False)
    targets = Targets(default=list, validators=rules(GitRepo, "targets"))
    correct_drift = Flag(default=False)
    keep_resources = Flag(default=False)
    force_sync_generation = Whole(
        default=0,
        min_value=0,
        max_value=LARGEST,
        help_text="Raising it asks for a sync; left out of a PUT, it stays as it is.",
    )
    generation = serializers.IntegerField(read_only=True)
    status = StatusSerializer(read_only=True)

    def validate_name(self, name: str) -> str:
        if self.instance is None and GitRepo.objects.alive().filter(name=name).exists():
            raise serializers.ValidationError("A GitRepo with this name exists already.", code="unique")
        return name

    def to_representation(self, instance: GitRepo) -> dict[str, Any]:
        statuses = self.context.get("statuses")
        names: list[str] = list(self.fields)
        shown = {name: getattr(instance, name) for name in names if name not in ("credential", "status")}
        shown["credential"] = instance.credential.name if instance.credential is not None else ""
        shown["status"] = (
            statuses[instance.pk] if statuses is not None else status_json(facts_of([instance])[instance.pk])
        )
        return {name: shown[name] for name in names}


# -- clusters, groups, credentials ---------------------------------------------------------------------------------


class Named(StrictSerializer):
    """Says that a name is taken before the database does."""

    model: type[Cluster] | type[ClusterGroup] | type[Credential]

    def validate_name(self, name: str) -> str:
        if self.instance is None and self.model._default_manager.filter(name=name).exists():
            kind = str(self.model._meta.verbose_name)
            raise serializers.ValidationError(f"A {kind} with this name exists already.", code="unique")
        return name


class ClusterStatusSerializer(serializers.Serializer[Any]):
    deliveries = serializers.DictField(child=serializers.IntegerField(), help_text="How many are in each state.")
    matching = serializers.BooleanField(
        help_text="True until the last change of its labels is matched with all targets."
    )


class ClusterSerializer(Named):
    model = Cluster

    name = Text(max_length=63, validators=rules(Cluster, "name"))
    labels = Texts(default=dict, validators=rules(Cluster, "labels"))
    driver = Text(default="directory", max_length=32)
    settings = Settings(default=dict)
    secrets = extend_schema_field(TEXTS)(Texts)(
        write_only=True,
        required=False,
        help_text="The driver's secrets. Written, never read; left out, they stay.",
    )
    status = serializers.SerializerMethodField()

    @extend_schema_field(ClusterStatusSerializer)
    def get_status(self, cluster: Cluster) -> dict[str, Any]:
        counts: dict[int, dict[str, int]] = self.context.get("counts", {})
        return {"deliveries": counts.get(cluster.pk, {}), "matching": cluster.match_due_at is not None}


class ClusterGroupSerializer(Named):
    model = ClusterGroup

    name = Text(max_length=63, validators=rules(ClusterGroup, "name"))
    selector = Selector(default=dict, validators=rules(ClusterGroup, "selector"))


class CredentialSerializer(Named):
    model = Credential

    name = Text(max_length=63, validators=rules(Credential, "name"))
    kind = serializers.ChoiceField(choices=Credential.Kind.choices)
    username = Text(default="", allow_blank=True, max_length=255)
    secret = Text(
        write_only=True,
        required=False,
        max_length=65536,
        help_text="The password, the token or the private key. Written, never read; left out, the stored one stays.",
    )
    known_hosts = Text(default="", allow_blank=True, max_length=65536)
