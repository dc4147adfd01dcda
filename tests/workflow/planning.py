"""Many dry-runs: each is a warm start, and costs half a second instead of three."""

from tests.workflow.warm import WarmStarts


class Planner:
    """Asks Snakemake, through its own command line, what it would do in a project."""

    def __init__(self, starts: WarmStarts) -> None:
        self._starts = starts

    def plan(self, project, *targets: str, flags: tuple[str, ...] = (), check: bool = True, **keywords):
        """Return {rule: output files} of a dry-run, and its output."""
        from tests.workflow.conftest import jobs_of

        command = project.command(*targets, **keywords)
        arguments = ["-n", "--quiet", "host", *flags, *command[command.index("--cores") :]]
        printed = project.folder.parent / "printed.txt"
        environment = project.environment()
        code = self._starts.run(
            "-m", "snakemake", *arguments, folder=project.folder, environment=environment, printed=printed
        )
        text = printed.read_text()
        assert not (check and code), f"snakemake {' '.join(arguments)} ended with {code}:\n{text}"
        return jobs_of(text), text
