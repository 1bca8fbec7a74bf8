"""The words in front of `git` that make a child of it die with its worker, however that ends.

setpriv sets a parent-death signal for a small shell, and that kills its group, because the signal is not inherited by what
git starts: git-remote-https would wait for a dead server for ever, and hold the mirror's lock. So the child must lead a
session of its own. The kernel sends the signal when the *thread* that started the child ends, so a child must not outlive
the thread that started it.
"""

import os
import shutil
from functools import cache

# $1 is our process id: if that is not the parent any more, it died before setpriv could ask for the signal.
# $2 is the largest file that git may write, in blocks of 512 bytes; raising it fails where an operator's own
# limit is lower, and then that one holds. A child in the background gets /dev/null as its standard input
# unless it is handed over as another descriptor.
SUPERVISOR = """
[ "$PPID" = "$1" ] || exit 125
trap 'kill -KILL 0' TERM HUP INT
[ "$2" = unlimited ] || ulimit -f "$2" 2>/dev/null || :
shift 2
exec 3<&0
"$@" <&3 3<&- &
exec 3<&- 0</dev/null
wait $!
"""


def dies_with_us(max_file_bytes: int = 0) -> list[str]:
    """The words; what they start may write no file larger than `max_file_bytes` (0: no limit), and ends as git ends."""
    blocks = str(-(-max_file_bytes // 512)) if max_file_bytes else "unlimited"
    return [*_death_signal(), "sh", "-c", SUPERVISOR, "fleetsync-git", str(os.getpid()), blocks]


@cache
def _death_signal() -> tuple[str, ...]:
    """util-linux has it, busybox has not: there a killed worker's git lives on until its server answers."""
    return ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
