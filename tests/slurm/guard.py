"""Ends what belongs to a cluster's folder as soon as standard input ends: also when its owner is killed.

A process belongs to it when its environment names the folder, as that of daemons and jobs does, or when it holds a file
there open, as SLURM's job managers do their log. Run as `python guard.py FOLDER`.
"""

import os
import signal
import sys
import time
from pathlib import Path


def members(folder: str) -> list[int]:
    """Return the ids of the processes that belong to `folder`."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _belongs(entry, folder)]


def _belongs(entry: Path, folder: str) -> bool:
    try:
        if folder.encode() in (entry / "environ").read_bytes():
            return True
        return any(os.readlink(link).startswith(folder) for link in (entry / "fd").iterdir())
    except OSError:
        return False  # ended meanwhile, or another user's


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    for _ in range(20):  # a job may be starting another process
        found = members(os.path.join(sys.argv[1], ""))  # with its slash: not another folder of a longer name
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1 if found else 0.01)


if __name__ == "__main__":
    main()
