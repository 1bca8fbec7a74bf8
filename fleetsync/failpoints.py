"""Places where a test stops, kills, slows or fails a process. Absent unless FAILPOINTS_DIR names a folder.

A failpoint is armed by a file of its name in that folder, while everything runs: JSON as in
{"action": "kill", "about": "shop", "times": 1, "seconds": 2}.

- `action`: "kill" (SIGKILL to this process), "stop" (SIGSTOP, until somebody sends SIGCONT), "sleep" (for `seconds`), or
  "raise" (FailpointError).
- `about`: only a hit whose own words contain it counts; left out, each does.
- `times`: how often; 1 if left out, 0 for as long as the file is there.

Each hit that counts leaves a file `<name>.hit-<pid>-<number>`, which says who was hit. A system check refuses the
variable unless DEBUG is on.
"""

import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path

VARIABLE = "FAILPOINTS_DIR"

_numbers = itertools.count(1)


class FailpointError(Exception):
    """What the action "raise" raises: an error that nobody expects."""


def _nothing(name: str, about: str = "") -> None:
    """A process without failpoints."""


def _look(name: str, about: str = "") -> None:
    folder = Path(os.environ[VARIABLE])
    armed = folder / name
    try:
        order = json.loads(armed.read_text())
    except FileNotFoundError:
        return
    except ValueError:
        return  # it is being written
    if order.get("about", "") not in about:
        return
    hit = folder / f"{name}.hit-{os.getpid()}-{next(_numbers)}"
    times = order.get("times", 1)
    if times == 1:
        try:
            armed.rename(hit)  # of several processes that come by at the same moment one gets it
        except FileNotFoundError:
            return
    else:
        hit.write_text(json.dumps(order))
        if times:
            armed.with_suffix(".new").write_text(json.dumps({**order, "times": times - 1}))
            armed.with_suffix(".new").replace(armed)
    match order["action"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            # To this thread: sent to the process, another thread takes the signal, and this one goes on until it does.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        case "sleep":
            time.sleep(float(order["seconds"]))
        case "raise":
            raise FailpointError(f"the failpoint {name} was armed")


# Decided once: in a process that serves users a failpoint is a call of an empty function.
hit = _look if os.environ.get(VARIABLE) else _nothing
