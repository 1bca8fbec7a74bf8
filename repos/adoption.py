"""Adoption: what a remote answered becomes revisions of the GitRepos that follow it.

Reads stored refs only. Each page of followers is one transaction in which revisions and jobs are made and the requests
are marked handled, so a crash between pages loses nothing and repeats nothing.
"""

from datetime import datetime

from django.db import transaction
from django.db.models import F, Q

from repos.events import record_event
from repos.leases import database_now
from repos.models import Adoption, GitRepo, Remote
from repos.refs import head_of, missing_sentence, was_asked
from repos.remotes import refresh_interval, wanting
from repos.revisions import observe

PAGE = 200


def concerned(remote: Remote) -> Q:
    """Followers that the stored answer is for: they want it, their requests are answered, and they have not taken it in."""
    not_taken_in = (
        ~Q(adopted_remote=remote.pk)
        | Q(adopted_remote__isnull=True)
        | ~Q(adopted_change=remote.change)
        | Q(adopted_change__isnull=True)
        | Q(requested__gt=F("handled"))
    )
    return wanting() & Q(remote=remote, requested__lte=remote.answered) & not_taken_in


def adopt_page(remote_id: int, after: int) -> int | None:
    """Adopt for one page of the remote's followers beyond the primary key `after`; the last key seen, None at the end."""
    with transaction.atomic():
        remote = Remote.objects.select_for_update().get(pk=remote_id)
        now = database_now()
        page = list(GitRepo.objects.select_for_update().filter(concerned(remote), pk__gt=after).order_by("pk")[:PAGE])
        for gitrepo in page:
            _adopt_one(gitrepo, remote, now)
        if page:
            refresh_interval(remote)
    return page[-1].pk if len(page) == PAGE else None


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
    observe(gitrepo, head, now)
    GitRepo.objects.filter(pk=gitrepo.pk).update(adopted_remote=remote.pk, adopted_change=remote.change)


def adopt(adoption: Adoption) -> int:
    """Adopt for all followers of the claimed `adoption`'s remote, in pages; how many pages there were."""
    after: int | None = 0
    pages = 0
    while after is not None:
        after = adopt_page(adoption.remote_id, after)
        pages += 1
    return pages
