"""Adoption: what a remote answered becomes revisions of the GitRepos that follow it.

Reads stored refs only. Each page of followers is one transaction in which revisions and jobs are made and the requests
are marked handled, so a crash between pages loses nothing and repeats nothing.
"""

from dataclasses import dataclass
from datetime import datetime

import structlog
from django.db import OperationalError, transaction
from django.db.models import F, Q

from fleetsync.failpoints import hit
from repos.events import record_event
from repos.leases import database_now
from repos.models import Adoption, GitRepo, Remote
from repos.refs import head_of, missing_sentence, was_asked
from repos.remotes import refresh_interval, wanting
from repos.revisions import observe

log = structlog.get_logger(__name__)

PAGE = 200


def concerned(remote: Remote) -> Q:
    """Followers that the stored answer is for: they want it, it was asked for what they follow now, and they have not
    taken it in. A request that came after the question stays open, and does not keep out what was seen meanwhile: a
    branch that is pushed to, and announced, all the time is followed all the same.
    """
    not_taken_in = (
        ~Q(adopted_remote=remote.pk)
        | Q(adopted_remote__isnull=True)
        | ~Q(adopted_change=remote.change)
        | Q(adopted_change__isnull=True)
        | Q(requested__gt=F("handled"))
    )
    return wanting() & Q(remote=remote, follows_since__lte=remote.answered) & not_taken_in


@dataclass
class Adopted:
    """How far an adoption has come: the last primary key seen, and how many followers could not take in the answer."""

    after: int = 0
    failed: int = 0


def adopt_page(remote_id: int, so_far: Adopted) -> bool:
    """Adopt for the next page of the remote's followers; False if it was the last one. One follower's fault is its own."""
    with transaction.atomic():
        remote = Remote.objects.select_for_update().filter(pk=remote_id).first()
        if remote is None:
            return False
        now = database_now()
        followers = GitRepo.objects.select_for_update().filter(concerned(remote), pk__gt=so_far.after)
        page = list(followers.order_by("pk")[:PAGE])
        for gitrepo in page:
            try:
                with transaction.atomic():
                    _adopt_one(gitrepo, remote, now)
            except OperationalError:
                raise
            except Exception:
                log.exception("an answer could not be adopted", gitrepo=gitrepo.name, repository=remote.url)
                so_far.failed += 1
        if page:
            so_far.after = page[-1].pk
            refresh_interval(remote)
    hit("adopt.page", remote.url)
    return len(page) == PAGE


def _adopt_one(gitrepo: GitRepo, remote: Remote, now: datetime) -> None:
    if not was_asked(gitrepo, remote.asked):
        # The poll that answered did not know of this follower's ref; its own request brings the next one.
        return
    head = head_of(gitrepo, remote.refs)
    if head is None:
        sentence = missing_sentence(gitrepo)
        GitRepo.objects.filter(pk=gitrepo.pk).update(ref_failures=F("ref_failures") + 1, ref_error=sentence)
        record_event(gitrepo, "RefNotFound", sentence, now, warning=True)
        return
    taken_in = {"adopted_remote": remote.pk, "adopted_change": remote.change}
    observe(gitrepo, head, now, answered=remote.answered, **taken_in)


def adopt(adoption: Adoption) -> int:
    """Adopt for all followers of the claimed `adoption`'s remote, in pages; how many of them failed."""
    so_far = Adopted()
    while adopt_page(adoption.remote_id, so_far):
        pass
    return so_far.failed
