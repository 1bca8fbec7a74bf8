"""What happened to a GitRepo, in JSON: revisions with their ledger, jobs, deliveries, events. Read only."""

from typing import Any

from rest_framework import serializers

from repos.models import Delivery, DeliveryRecord, Event, Revision, SyncJob


class RecordSerializer(serializers.ModelSerializer[DeliveryRecord]):
    """What became of one revision at one cluster."""

    cluster = serializers.CharField(source="cluster.name")

    class Meta:
        model = DeliveryRecord
        fields = ["cluster", "outcome", "error", "wanted_at", "ended_at"]


class RevisionSerializer(serializers.ModelSerializer[Revision]):
    bundle = serializers.CharField(source="bundle.sha256", default="")
    records = RecordSerializer(many=True)

    class Meta:
        model = Revision
        fields = [
            "number",
            "commit",
            "ref",
            "generation",
            "reason",
            "outcome",
            "pushed_at",
            "observed_at",
            "synced_at",
            "bundle",
            "records",
        ]


class JobSerializer(serializers.ModelSerializer[SyncJob]):
    revision = serializers.IntegerField(source="revision.number")
    commit = serializers.CharField(source="revision.commit")

    class Meta:
        model = SyncJob
        fields = [
            "revision",
            "commit",
            "state",
            "failures",
            "last_error",
            "due_at",
            "created_at",
            "started_at",
            "finished_at",
        ]


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    """The revision and the commit wanted at one cluster, and those applied there; null and "" are none."""

    cluster = serializers.CharField(source="cluster.name")
    wanted_revision = serializers.IntegerField(source="wanted_revision.number", default=None, allow_null=True)
    wanted_commit = serializers.CharField(source="wanted_revision.commit", default="")
    applied_revision = serializers.IntegerField(source="applied_revision.number", default=None, allow_null=True)
    applied_commit = serializers.CharField(source="applied_revision.commit", default="")

    class Meta:
        model = Delivery
        fields = [
            "cluster",
            "state",
            "removal",
            "epoch",
            "sequence",
            "wanted_revision",
            "wanted_commit",
            "wanted_at",
            "applied_revision",
            "applied_commit",
            "applied_at",
            "due_at",
            "failures",
            "last_error",
        ]


class EventSerializer(serializers.ModelSerializer[Event]):
    class Meta:
        model = Event
        fields = ["type", "reason", "message", "count", "first_at", "last_at"]


class WaitSerializer(serializers.Serializer[Any]):
    """`ended` is false if the time was over first; then the rest says how far it has come."""

    ended = serializers.BooleanField()
    revision = serializers.IntegerField()
    commit = serializers.CharField(allow_blank=True)
    outcome = serializers.CharField(allow_blank=True)
    records = RecordSerializer(many=True)


class ApprovedSerializer(serializers.Serializer[Any]):
    approved = serializers.IntegerField(help_text="How many held deliveries go on.")
