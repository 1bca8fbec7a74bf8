"""What is wanted and what is true, one word of the glossary a file."""

from repos.models.bundle import Bundle
from repos.models.chore import Chore
from repos.models.cluster import Cluster, ClusterGroup
from repos.models.counter import Counter
from repos.models.credential import Credential
from repos.models.delivery import Delivery, DeliveryRecord
from repos.models.event import Event
from repos.models.gitrepo import GitRepo
from repos.models.host import Host, HostNotBefore
from repos.models.mirror import Mirror
from repos.models.probe import Probe
from repos.models.remote import Adoption, Remote
from repos.models.revision import Revision
from repos.models.sync_job import SyncJob

__all__ = [
    "Adoption",
    "Bundle",
    "Chore",
    "Cluster",
    "ClusterGroup",
    "Counter",
    "Credential",
    "Delivery",
    "DeliveryRecord",
    "Event",
    "GitRepo",
    "Host",
    "HostNotBefore",
    "Mirror",
    "Probe",
    "Remote",
    "Revision",
    "SyncJob",
]
