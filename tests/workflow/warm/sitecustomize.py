"""Every Python of a warm run loads this first: what `server.py` can start in its place is handed over."""

import os
import sys

_given = sys.orig_argv[1:]
_starts = _given[:2] == ["-m", "snakemake"] or "".join(_given[:1]).startswith("scripts/")
if _starts and "TESTS_WARM_SERVER" in os.environ:
    from handover import hand_over

    os._exit(
        hand_over(
            os.environ["TESTS_WARM_SERVER"],
            arguments=_given,
            folder=os.getcwd(),
            environment=os.environ,
            streams=[0, 1, 2],
        )
    )
