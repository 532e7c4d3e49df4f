"""File descriptors: every client has one, and so has every exchange. When they run short, newcomers are turned away, so
that who is inside finds one for a model server. How many there may be at all is `serving`'s."""

from __future__ import annotations

import resource
from enum import Enum
from typing import Final

RESERVED: Final = 16
"""One in so many is for exchanges alone; as many more are for clients who are told to come back later."""


class Left(Enum):
    """How many descriptors there still are."""

    ENOUGH = "enough"
    FEW = "few"
    """For one more answer, which says that it is the last."""
    RESERVED = "reserved"
    """None for clients."""


def left_behind(descriptor: int) -> Left:
    """What a newly accepted client's descriptor leaves of those that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Left.ENOUGH if soft == resource.RLIM_INFINITY else left_of(soft, descriptor)


def left_of(most: int, descriptor: int) -> Left:
    """The same of `most`. A new descriptor is always the lowest free one: below it all are in use."""
    reserve = most // RESERVED
    if descriptor < most - 2 * reserve:
        return Left.ENOUGH
    return Left.FEW if descriptor < most - reserve else Left.RESERVED
