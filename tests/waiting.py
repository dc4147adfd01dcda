"""Wait for what another process does."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], *, seconds: float = 120.0) -> None:
    """Look at the condition again and again until it holds; fail after this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.02)
