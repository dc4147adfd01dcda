"""The times of training that a package states. They come from settings or SOURCE_DATE_EPOCH, never from the clock."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sealed_experts.errors import UserError
from sealed_experts.packages.settings import PackageSettings

EPOCH = "SOURCE_DATE_EPOCH"
_LATEST = 253_402_300_799  # the last second of the year 9999


def read_epoch(environment: Mapping[str, str]) -> int | None:
    """Return SOURCE_DATE_EPOCH (reproducible-builds.org) as a number of seconds; None if it is unset or empty.

    Raises:
        UserError: it is not a time.
    """
    text = environment.get(EPOCH)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) <= _LATEST):
        raise UserError(f"{EPOCH} is {text[:40]!r}: it must be a whole number of seconds since 1970")
    return int(text)


def stated_times(package: PackageSettings, *, epoch: int | None) -> dict[str, str]:
    """Return `started` and `finished`, if settings or SOURCE_DATE_EPOCH state them.

    The clock is never used: the same inputs give the same bytes, and the time that training took stays private.

    Raises:
        UserError: one comes from the settings and the other from SOURCE_DATE_EPOCH, and training would end too early.
    """
    default = None if epoch is None else datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    times = {"started": package.started or default, "finished": package.finished or default}
    stated = {name: time for name, time in times.items() if time is not None}
    if len(stated) == 2 and stated["started"] > stated["finished"]:
        raise UserError(
            f"training would have ended ({stated['finished']}) before it started ({stated['started']}): give both"
            f" package.started and package.finished, or neither, or another {EPOCH}"
        )
    return stated


def check_times(packages: Mapping[str, PackageSettings], environment: Mapping[str, str]) -> None:
    """Check the times of all packages before anything runs; `packages` are the settings of each expert, by name.

    Raises:
        UserError: SOURCE_DATE_EPOCH is not a time, or contradicts an expert's times.
    """
    epoch = read_epoch(environment)
    for expert, package in packages.items():
        try:
            stated_times(package, epoch=epoch)
        except UserError as error:
            raise UserError(f"experts.{expert}.package: {error}") from error
