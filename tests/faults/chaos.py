"""Faults drawn at random while users and their repositories do what they do; repeatable by its seed."""

import random
import threading
import time
from collections.abc import Callable

from tests.end_to_end.stack import ApiError
from tests.faults.judge import Report
from tests.faults.load import Followed
from tests.faults.table import FAULTS
from tests.faults.world import World

# Those that need no quiet world and no GitRepos of their own.
DRAWN = [
    "a_whole_worker_killed",
    "every_worker_killed_for_a_while",
    "beat_killed",
    "beat2_killed",
    "p8_flushall_with_work_queued",
    "redis_frozen",
    "redis_out_of_memory",
    "no_beat_for_a_while",
    "p9_five_beats",
    "doorbells_tripled_late_and_out_of_order",
    "doorbells_of_an_older_and_a_newer_version",
    "nonsense_in_the_queues",
    "database_away",
    "table_locked_repos_remote",
    "table_locked_repos_syncjob",
    "table_locked_repos_delivery",
    "sqlite_locked_by_another_process",
    "mirrors_corrupted",
    "stale_git_locks",
    "a_rolling_restart_of_everything",
]
POINTS = ("killed_at_", "frozen_at_", "postgresql_restarted_at_")


def drawn_from(database: str) -> list[str]:
    names = [name for name in FAULTS if name in DRAWN or name.startswith(POINTS)]
    return [name for name in names if database in FAULTS[name].databases]


class Meddler:
    """What users and pushers do meanwhile, some times a second: A → B → A, branches deleted and made again, edits,
    forced syncs, deletions and new registrations under the same name.
    """

    def __init__(self, world: World, seed: int, every: float = 0.5) -> None:
        self.world, self.every = world, every
        self.random = random.Random(seed)
        self.done: dict[str, int] = {}
        self.gone: list[Followed] = []
        self.over = threading.Event()
        self.failed: list[str] = []
        self.thread = threading.Thread(target=self._run, daemon=True, name="meddler")

    def __enter__(self) -> "Meddler":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(120)
        assert not self.thread.is_alive(), "the meddler does not end"
        # What was taken away comes back, so that every GitRepo has a newest commit to be delivered.
        for one in self.gone:
            one.push()

    def _run(self) -> None:
        deeds = (
            self.push,
            self.push,
            self.push,
            self.push_back,
            self.delete_branch,
            self.edit,
            self.force,
            self.register_anew,
        )
        while not self.over.wait(self.every):
            deed = self.random.choice(deeds)
            with self.world.lock:
                one = self.random.choice(self.world.followed)
                try:
                    deed(one)
                except Exception as error:  # noqa: BLE001 (whatever it is: the test says so at its end)
                    self.failed.append(f"{deed.__name__} {one.name}: {error!r}")
                self.done[deed.__name__] = self.done.get(deed.__name__, 0) + 1

    def push(self, one: Followed) -> None:
        if one not in self.gone:
            one.push()

    def push_back(self, one: Followed) -> None:
        if one not in self.gone and len(one.contents) > 1:
            one.push_back()

    def delete_branch(self, one: Followed) -> None:
        """The content at the clusters stays; a few seconds later the branch is there again."""
        if one in self.gone:
            return
        one.repository.git("update-ref", "-d", "refs/heads/main")
        one.reverts = True
        if len(self.gone) > 3:
            back = self.gone.pop(0)
            back.push()
        self.gone.append(one)

    def edit(self, one: Followed) -> None:
        one.paths = ["deploy"] if len(one.paths) > 1 else ["deploy", "more"]
        one.reverts = True
        self.persist("PATCH", f"gitrepos/{one.name}/", {"paths": one.paths})

    def force(self, one: Followed) -> None:
        self.persist("POST", f"gitrepos/{one.name}/sync/", None)

    def register_anew(self, one: Followed) -> None:
        """Deleted and registered again under its name: the clusters end with the new one's content."""
        one.reverts = True
        self.persist("DELETE", f"gitrepos/{one.name}/", None, fine=(404,))
        self.persist("POST", "gitrepos/", self.world.spec_of(one), fine=(400,))

    def persist(self, method: str, path: str, body: object, fine: tuple[int, ...] = ()) -> None:
        """Until the door has answered: it may be closed just now, and its answer may have been lost."""
        end = time.monotonic() + 60
        while True:
            try:
                self.world.stack.api(method, path, body)
            except (OSError, ApiError) as error:
                status = error.status if isinstance(error, ApiError) else 0
                if status in fine:
                    return
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)
            else:
                return


def chaos(world: World, seconds: float, seed: int, say: Callable[[str], None]) -> Report:
    """Faults one after the other for so long, drawn by `seed`; what they were is in the report."""
    draw = random.Random(seed)
    report = Report(f"chaos {seconds:g} s, seed {seed}", world.database)
    names = drawn_from(world.database)
    end = time.monotonic() + seconds
    happened: dict[str, int] = {}
    with Meddler(world, seed + 1) as meddler:
        while time.monotonic() < end:
            name = draw.choice(names)
            say(f"{end - time.monotonic():5.0f} s left: {name}")
            try:
                FAULTS[name].inject(world, Report(name, world.database))
            except AssertionError as error:
                # What an entry waits for in a quiet world may take longer in this one; the oracle judges at the end.
                say(f"      {str(error)[:150]}")
            world.clear_failpoints()
            happened[name] = happened.get(name, 0) + 1
            time.sleep(draw.uniform(0.0, 2.0))
    assert not meddler.failed, meddler.failed
    report.notes |= {"faults": sum(happened.values()), "kinds": len(happened), **meddler.done}
    return report
