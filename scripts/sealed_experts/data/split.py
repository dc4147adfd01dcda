"""Which side of the split a record belongs to: only a keyed hash of its group's identity decides.

The side of a record is a function of the seed, of val_fraction and of the groups of its own unit. Adding or removing
other records never moves it. So the training data of neighbouring datasets differ in exactly one unit.
"""

import hashlib
import hmac
from collections.abc import Iterable

from sealed_experts.data.rows import TRAIN, VAL


def split_key(seed: int) -> bytes:
    """Return the key of the split, 32 bytes. One seed splits all datasets in the same way."""
    return hashlib.sha256(b"sealed-experts/split/v1\0" + str(seed).encode()).digest()


def side_of_group(group: str, *, key: bytes, val_fraction: float) -> str:
    """Return `val` for about `val_fraction` of all groups, else `train`.

    The first 53 bits of HMAC-SHA-256(key, group), as a number in [0, 1), are compared with the fraction.
    """
    digest = hmac.digest(key, group.encode(), "sha256")
    position = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    return VAL if position < val_fraction else TRAIN


def side_of_unit(groups: Iterable[str], *, key: bytes, val_fraction: float) -> str:
    """Return the side of a unit of privacy: the side of its smallest group.

    A unit in several groups must still be on one side, and only its own rows may decide which one.
    """
    return side_of_group(min(groups), key=key, val_fraction=val_fraction)
