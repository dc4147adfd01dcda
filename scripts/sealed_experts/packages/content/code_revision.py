"""The revision of the code that seals a package, if it is known."""

import os
import re
import subprocess
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def code_revision(root: Path) -> str | None:
    """Return the commit of the repository at `root`.

    It is None if git or the repository is missing, or if a tracked file of the code was changed. Changes of other
    files, such as configurations, are allowed.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():  # the folder is inside another repository
        return None
    if _git(root, "diff", "--quiet", "HEAD", "--", "scripts", "rules", "Snakefile", "requirements.txt") is None:
        return None
    commit = _git(root, "rev-parse", "HEAD")
    return commit if commit is not None and _COMMIT.fullmatch(commit) else None


def _git(root: Path, *arguments: str) -> str | None:
    # Variables such as GIT_DIR (a hook may set them) would point to another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
