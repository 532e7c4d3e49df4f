"""How many files this process may have open, for programs with a thousand sockets."""

from __future__ import annotations

import resource


def allow_many_files() -> int:
    """As many as the system lets anybody have, and how many that is; shells often start programs with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
