"""The supervisor of several processes on one port: keeps the ports, starts the workers, replaces those that die, and
passes on signals and what the file says new.

It has no event loop, and nothing to do with requests. What a worker makes of it is `workers`'.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from proxy.lines import hear, parcel, say
from proxy.overseer import DONE, FAILED, INTERRUPTED, exit_code, say_ready, status
from proxy.ports import Ports, close
from proxy.reload import LOOK_EVERY_S, Reload, Reloader
from proxy.signals import SignalLine
from proxy.systemd import NotifySocket
from proxy.telemetry.families import CONFIG_RELOADS
from proxy.worker_metrics import Gathering

QUICK_S = 1.0
"""A worker that dies sooner after its start may well do so again: its successor waits."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
HURRY_S = 5.0
"""How long workers may take to stop at once, before they are killed."""
STOPPING = (signal.SIGTERM, signal.SIGINT)
ATTENDED = (*STOPPING, signal.SIGHUP)

Work = Callable[[socket.socket, socket.socket, Reload], int]
"""A worker's life, given its ends of the lines to the supervisor, for orders and for figures, and what came of reading
the configuration last; its exit code."""

logger = logging.getLogger("penstock")


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker as its supervisor knows it. `quick_deaths`: of those before it in its place, one after the other."""

    pid: int
    line: socket.socket
    figures_line: socket.socket
    started_s: float
    quick_deaths: int
    ready: bool = False


class Supervisor:
    """Keeps `count` processes at `work`, which is given its lines and what came of reading the configuration last, and
    gives its exit code. `ports` are kept for them; who started the supervisor is told through `notify`.

    The first one starts alone: what keeps it from being ready would keep all of them, and is said once.
    """

    def __init__(self, count: int, work: Work, ports: Ports, reloader: Reloader, notify: NotifySocket) -> None:
        self._count = count
        self._work = work
        self._ports = ports
        self._reloader = reloader
        self._notify = notify
        self._workers: list[_Worker] = []
        self._due: list[tuple[float, int]] = []  # when to start a worker, and its `quick_deaths`
        self._orders: list[int] = []  # the signals that ask to stop
        self._kill_at_s: float | None = None
        self._proven = False
        self._url: str | None = None  # once all are ready
        self._look_at_s = time.monotonic() + LOOK_EVERY_S
        self._alive_at_s = time.monotonic()
        self._selector = selectors.DefaultSelector()  # each key's data is what to call
        self._gathering = Gathering(self._selector)
        self._signals = SignalLine(ATTENDED)
        self._selector.register(self._signals.socket, selectors.EVENT_READ, self._heard_signals)

    def run(self) -> int:
        """Until all have ended; the program's exit code."""
        with self._selector, self._signals.attended():
            self._start(0)
            while self._workers or self._due:
                for key, _ in self._selector.select(self._patience_s()):
                    key.data()
                self._do_what_is_due()
        self._ports.close()
        if not self._orders:
            return FAILED
        return exit_code(self._orders[0], hurried=len(self._orders) > 1)

    def _patience_s(self) -> float:
        """Until the next thing is due."""
        times = [at_s for at_s, _ in self._due]
        times += [at_s for at_s in (self._kill_at_s, self._gathering.due_s) if at_s is not None]
        times.append(self._look_at_s if self._notify.alive_every_s is None else min(self._look_at_s, self._alive_at_s))
        return max(0.0, min(times) - time.monotonic())

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        due = [quick_deaths for at_s, quick_deaths in self._due if at_s <= now]
        self._due = [later for later in self._due if later[0] > now]
        for quick_deaths in due:
            self._start(quick_deaths)
        if self._gathering.due_s is not None and self._gathering.due_s <= now:
            self._gathering.end_round()
        if self._kill_at_s is not None and self._kill_at_s <= now:
            self._kill_at_s = None
            for worker in self._workers:
                os.kill(worker.pid, signal.SIGKILL)
        if self._look_at_s <= now:
            self._look_at_s = now + LOOK_EVERY_S
            if self._reloader.is_due():
                self._reload()
        if (every_s := self._notify.alive_every_s) is not None and self._alive_at_s <= now:
            self._alive_at_s = now + every_s
            self._notify.alive()

    def _heard_signals(self) -> None:
        for number in self._signals.numbers():
            if number in STOPPING:
                self._stop(number)
            elif number == signal.SIGHUP:
                self._reload()

    def _reload(self) -> None:
        """Read the file, once for all: every worker gets the same, and one that starts later, too."""
        if self._orders:
            return
        self._notify.reloading()
        reload = self._reloader.reload()
        self._gathering.count({CONFIG_RELOADS.name: {(): [1]}})
        with parcel(reload) as descriptor:
            for worker in self._workers:
                self._pass_on(worker, descriptor)
        if self._url is not None:
            self._notify.ready(status(self._url, reload))

    def _pass_on(self, worker: _Worker, descriptor: int) -> None:
        try:
            socket.send_fds(worker.line, [bytes([signal.SIGHUP])], [descriptor])
        except ConnectionError:
            pass  # it has just ended
        except OSError:  # what it was told before fills the line
            logger.error("worker %d hears nothing any more: it would go on with an old configuration", worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    def _stop(self, number: int) -> None:
        """Pass it on. From now on another program can have the ports, and nobody is replaced."""
        self._orders.append(number)
        self._notify.stopping()
        self._ports.close()
        self._due.clear()
        for worker in self._workers:
            say(worker.line, bytes([number]))
        if len(self._orders) == 2:
            self._kill_at_s = time.monotonic() + HURRY_S

    def _heard(self, worker: _Worker) -> None:
        url = hear(worker.line).decode()
        if not url:
            self._ended(worker)
            return
        worker.ready = True
        self._gathering.join(worker.pid, worker.figures_line)
        if self._orders:
            return
        if not self._proven:
            self._proven = True
            self._due = [(0.0, 0)] * (self._count - 1)
        if self._url is None and sum(worker.ready for worker in self._workers) == self._count:
            self._url = url
            logger.info("%d workers", self._count)
            say_ready(url)
            self._notify.ready(status(url, self._reloader.last))

    def _ended(self, worker: _Worker) -> None:
        self._selector.unregister(worker.line)
        worker.line.close()
        self._gathering.leave(worker.pid)
        worker.figures_line.close()
        self._workers.remove(worker)
        code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        if code not in self._expected_codes():
            logger.error("worker %d %s", worker.pid, _manner(code))
        quick = time.monotonic() - worker.started_s < QUICK_S
        self._start_later(worker.quick_deaths + 1 if quick else 0)

    def _expected_codes(self) -> tuple[int, ...]:
        if self._orders:
            return (DONE, INTERRUPTED)
        return () if self._proven else (FAILED,)  # it has said itself what keeps it from starting

    def _start_later(self, quick_deaths: int) -> None:
        """A worker in the place of one that is missing, unless none could ever start or all are to end."""
        if self._proven and not self._orders:
            wait_s = delay_s(quick_deaths)
            logger.info("another worker starts %s", f"in {wait_s:g} s" if wait_s else "now")
            self._due.append((time.monotonic() + wait_s, quick_deaths))

    def _start(self, quick_deaths: int) -> None:
        line, workers_line = socket.socketpair()
        line.setblocking(False)
        figures_line, workers_figures_line = socket.socketpair()
        with workers_line, workers_figures_line, self._signals.held_back():
            try:
                pid = os.fork()
            except OSError as error:
                logger.error("no process for a worker: %s", error.strerror)
                close([line, figures_line])
                self._start_later(quick_deaths + 1)
                return
            if pid == 0:
                close([line, figures_line])
                self._become_worker(workers_line, workers_figures_line)
        worker = _Worker(pid, line, figures_line, time.monotonic(), quick_deaths)
        self._workers.append(worker)
        self._selector.register(line, selectors.EVENT_READ, partial(self._heard, worker))

    def _become_worker(self, line: socket.socket, figures_line: socket.socket) -> NoReturn:
        """In the new process: let go of what is the supervisor's, or its end would not be noticed, and work."""
        code = FAILED
        try:
            self._signals.leave()
            self._selector.close()
            lines = (line for worker in self._workers for line in (worker.line, worker.figures_line))
            close(lines)
            line.setblocking(False)
            figures_line.setblocking(False)
            code = self._work(line, figures_line, self._reloader.last)
        except Exception:
            logger.exception("a worker failed")
        finally:
            with suppress(OSError):
                sys.stderr.flush()
            os._exit(code)


def delay_s(quick_deaths: int) -> float:
    """How long a worker's successor waits, after so many deaths in a row that came within `QUICK_S` of a start."""
    return min(FIRST_DELAY_S * 2 ** (min(quick_deaths, 32) - 1), LONGEST_DELAY_S) if quick_deaths else 0.0


def _manner(code: int) -> str:
    """How a process ended, by its exit code, or the signal's number below zero."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"
