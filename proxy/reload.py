"""The configuration of a program that runs: when its file is to be read again, and what comes of it.

All or nothing: a file that cannot be used is told, and the last good one stays. Taking it up is the gateway's.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from proxy.config.changes import changes, need_restart, taken_up
from proxy.config.complaints import ConfigError
from proxy.config.consistency import public_without_keys
from proxy.config.model import AuthKey, Config
from proxy.config.pending import pending

LOOK_EVERY_S: Final = 1.0
"""Between two looks at the file; a change is taken up when two of them saw the same."""

logger = logging.getLogger("penstock")


class Unusable(Exception):
    """A file that is right in itself, but that this process cannot use. The text says why."""


@dataclass(frozen=True, slots=True)
class Reload:
    """What came of reading the file: `config` is the one to use from now on, which is the one before where there are
    `complaints`. `needs_restart` are places that it keeps from the start; `at` is when, in seconds since 1970."""

    config: Config
    at: float
    complaints: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


class FileWatch:
    """Whether a file was written, replaced or linked to another one; its owner asks again and again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = self._seen = _signature(path)

    def is_read(self) -> None:
        """To be called before the file is."""
        self._read = self._seen = _signature(self._path)

    def has_changed(self) -> bool:
        """Since it was read; but not since it was last asked for: then it may still be being written."""
        before, self._seen = self._seen, _signature(self._path)
        return before == self._seen != self._read


class Reloader:
    """Reads the configuration with `read`, at once and when told. `last` is what came of it the last time.

    Raises `ConfigError`, or what else `read` raises, where there is nothing to begin with.
    """

    def __init__(self, path: Path, read: Callable[[], Config]) -> None:
        self._watch = FileWatch(path)
        self._load = read
        self.last = self._before = Reload(_with_digests(read()), time.time())

    def is_due(self) -> bool:
        """Whether the file has changed. To be asked every `LOOK_EVERY_S`."""
        return self._watch.has_changed()

    def reload(self) -> Reload:
        """Read the file again, and log what changes. It may take a second; one at a time."""
        self._watch.is_read()
        running = self.last.config
        try:
            read = self._usable()
        except ConfigError as error:
            return self._refuse(*map(str, error.complaints))
        except Unusable as error:
            return self._refuse(str(error))
        self._before = self.last
        self.last = Reload(taken_up(running, read), time.time(), needs_restart=need_restart(running, read))
        _log(running, self.last)
        return self.last

    def give_up(self, complaint: str) -> Reload:
        """What was read last could not be taken up, so that what was in use before stays."""
        self.last = self._before
        return self._refuse(complaint)

    def _refuse(self, *complaints: str) -> Reload:
        self.last = replace(self.last, at=time.time(), complaints=complaints)
        logger.error("the configuration was not taken up, the last good one stays: %s", "; ".join(complaints))
        return self.last

    def _usable(self) -> Config:
        read = _with_digests(self._load())
        complaint = public_without_keys(read, self.last.config.server.host)  # where we listen, whatever it says now
        if complaint is not None:
            raise Unusable(complaint)
        return read


def say_pending(config: Config, before: Config | None = None) -> None:
    """Log which settings of the file do nothing yet, but for those that `before` had too."""
    known = () if before is None else pending(before)
    for place in pending(config):
        if place not in known:
            logger.warning("%s is accepted but does nothing yet", place)


def _log(before: Config, reload: Reload) -> None:
    """One line of what changes, and one of what cannot."""
    logger.info("configuration reloaded: %s", "; ".join(changes(before, reload.config)) or "nothing has changed")
    if reload.needs_restart:
        logger.warning("these changes are taken up at the next start: %s", ", ".join(reload.needs_restart))
    say_pending(reload.config, before)


def _with_digests(config: Config) -> Config:
    """The configuration with each key as its digest: key files are read now, and once for all processes."""
    if config.auth is None or not config.auth.keys:
        return config
    keys = tuple(_with_digest(key) for key in config.auth.keys)
    return config.model_copy(update={"auth": config.auth.model_copy(update={"keys": keys})})


def _with_digest(key: AuthKey) -> AuthKey:
    try:
        digest = key.digest()
    except (OSError, ValueError) as error:
        raise Unusable(f'auth.keys: the key_file of "{key.name}" cannot be read, or is empty') from error
    return key.model_copy(update={"key": None, "key_file": None, "key_sha256": digest})


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes with the file's content, wherever links lead; None: it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
