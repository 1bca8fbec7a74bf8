"""GitPython's ls-remote: a process of git for each poll.

python -m bench.peers.gitpython -polls=200 -in-flight=50 http://127.0.0.1:PORT
"""

from git.cmd import Git

from bench.peers import from_command_line, measure_threads


def poll(url: str, branch: str) -> str:
    said = str(Git().ls_remote(url, branch))
    return said.partition("\t")[0]


if __name__ == "__main__":
    task = from_command_line()
    measure_threads(poll, task, warm_up=min(task.in_flight, task.polls))
