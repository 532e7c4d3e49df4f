"""Several processes on one port: a supervisor keeps the ports, starts the workers, replaces those that die and passes
on the signals.

Each worker serves as one process would (`serving`), with a listening socket of its own: the kernel deals the
connections out. What is counted in memory is each worker's own; `worker_metrics` adds it up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import NoReturn

from proxy import serving
from proxy.app import CannotListen, say_pending
from proxy.config.addresses import Address
from proxy.config.model import Config
from proxy.telemetry.metrics import Figures
from proxy.worker_metrics import FiguresLine, Gathering

QUICK_S = 1.0
"""A worker that dies sooner after its start may well do so again: its successor waits."""
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
HURRY_S = 5.0
"""How long workers may take to stop at once, before they are killed."""
STOPPING = (signal.SIGTERM, signal.SIGINT)
ATTENDED = (*STOPPING, signal.SIGHUP)

Work = Callable[[socket.socket, socket.socket], int]
"""A worker's life, given its ends of the lines to the supervisor, for orders and for figures; its exit code."""

logger = logging.getLogger("penstock")


def run(config: Config, *, log_format: serving.LogFormat, log_level: str) -> int:
    """Serve with `server.workers` processes until a signal; the program's exit code. No event loop may exist yet."""
    publish = serving.set_up_log(log_format, log_level)
    if not (hasattr(socket, "SO_REUSEPORT") and hasattr(os, "fork")):
        logger.error("this system cannot share a port among processes: leave --workers and server.workers at 1")
        return serving.FAILED
    try:
        config, reserved = reserve(config)
    except CannotListen as error:
        logger.error("%s", serving.cannot_start(error))
        return serving.FAILED
    say_pending(config)

    def work(line: socket.socket, figures_line: socket.socket) -> int:
        return serving.serve(config, publish, _Line(line, FiguresLine(figures_line)))

    return _Supervisor(config.server.workers, work, reserved).run()


def reserve(config: Config) -> tuple[Config, list[socket.socket]]:
    """Sockets that keep the ports for the workers without listening, and the configuration with the real ports.

    The owner's duty: close them when the workers stop listening. Raises `CannotListen`.
    """
    server, listen = config.server, config.admin.listen
    main, reserved = _reserve("server", Address(server.host, server.port))
    changes: dict[str, object] = {"server": server.model_copy(update={"port": main.port})}
    if listen is not None:
        try:
            admin, more = _reserve("admin.listen", listen)
        except CannotListen:
            _close(reserved)
            raise
        changes["admin"] = config.admin.model_copy(update={"listen": admin})
        reserved += more
    return config.model_copy(update=changes), reserved


def _reserve(setting: str, address: Address) -> tuple[Address, list[socket.socket]]:
    """A name may stand for several addresses; they get the same port."""
    host, port = address
    reserved: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, place in dict.fromkeys((family, where[0]) for family, _, _, _, where in found):
            _bound(family, str(place), port, shared=False).close()
            reserved.append(_bound(family, str(place), port, shared=True))
            port = reserved[0].getsockname()[1]
    except OSError as error:
        _close(reserved)
        raise CannotListen(setting, address) from error
    return Address(host, port), reserved


def _bound(family: int, host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket on this port. One that is not `shared` shows whether somebody listens there already: with SO_REUSEPORT
    the kernel would deal a second penstock of the same user half of the connections."""
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


class _Line:
    """A worker's side of the line to its supervisor: says the URL once, and hears the numbers of signals.

    A terminal, or a service manager, signals the supervisor and the workers alike: what reaches a worker itself does
    not count, or one Ctrl-C would be two. A line that ends means that the supervisor is gone: drain.
    """

    shares_ports = True

    def __init__(self, line: socket.socket, figures_line: FiguresLine) -> None:
        self._line = line
        self._figures_line = figures_line
        self.gather = figures_line.gather

    async def attend(self, orders: serving.StopOrders, figures: Callable[[], Figures]) -> None:
        asyncio.get_running_loop().add_reader(self._line, self._heard, orders)
        await self._figures_line.attend(figures)

    def ready(self, url: str) -> None:
        _say(self._line, url.encode())

    def _heard(self, orders: serving.StopOrders) -> None:
        numbers = _hear(self._line)
        for number in numbers:
            orders.give(number)
        if not numbers:
            asyncio.get_running_loop().remove_reader(self._line)
            if not orders.first.done():
                orders.give(signal.SIGTERM)


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker as its supervisor knows it. `quick_deaths`: of those before it in its place, one after the other."""

    pid: int
    line: socket.socket
    figures_line: socket.socket
    started_s: float
    quick_deaths: int
    ready: bool = False


class _Supervisor:
    """Keeps `count` processes at `work`, which is given its lines, and gives its exit code.

    The first one starts alone: what keeps it from being ready would keep all of them, and is said once.
    """

    def __init__(self, count: int, work: Work, reserved: list[socket.socket]) -> None:
        self._count = count
        self._work = work
        self._reserved = reserved
        self._workers: list[_Worker] = []
        self._due: list[tuple[float, int]] = []  # when to start a worker, and its `quick_deaths`
        self._orders: list[int] = []  # the signals that ask to stop
        self._kill_at_s: float | None = None
        self._proven = False
        self._announced = False
        self._selector = selectors.DefaultSelector()  # each key's data is what to call
        self._gathering = Gathering(self._selector)
        self._signals, self._signalled = socket.socketpair()

    def run(self) -> int:
        """Until all have ended; the program's exit code."""
        with self._attending_signals():
            self._start(0)
            while self._workers or self._due:
                for key, _ in self._selector.select(self._patience_s()):
                    key.data()
                self._do_what_is_due()
        _close(self._reserved)
        if not self._orders:
            return serving.FAILED
        return serving.exit_code(self._orders[0], hurried=len(self._orders) > 1)

    @contextmanager
    def _attending_signals(self) -> Iterator[None]:
        with self._selector, self._signals, self._signalled:
            self._signalled.setblocking(False)
            self._selector.register(self._signals, selectors.EVENT_READ, self._heard_signals)
            signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
            for number in ATTENDED:
                signal.signal(number, _nothing)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)

    def _patience_s(self) -> float | None:
        """Until the next thing is due."""
        times = [at_s for at_s, _ in self._due]
        times += [at_s for at_s in (self._kill_at_s, self._gathering.due_s) if at_s is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

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

    def _heard_signals(self) -> None:
        for number in _hear(self._signals):
            if number in STOPPING:
                self._stop(number)

    def _stop(self, number: int) -> None:
        """Pass it on. From now on another program can have the ports, and nobody is replaced."""
        self._orders.append(number)
        _close(self._reserved)
        self._due.clear()
        for worker in self._workers:
            _say(worker.line, bytes([number]))
        if len(self._orders) == 2:
            self._kill_at_s = time.monotonic() + HURRY_S

    def _heard(self, worker: _Worker) -> None:
        url = _hear(worker.line).decode()
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
        if not self._announced and sum(worker.ready for worker in self._workers) == self._count:
            self._announced = True
            logger.info("%d workers", self._count)
            serving.say_ready(url)

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
            return (serving.DONE, serving.INTERRUPTED)
        return () if self._proven else (serving.FAILED,)  # it has said itself what keeps it from starting

    def _start_later(self, quick_deaths: int) -> None:
        """A worker in the place of one that is missing, unless none could ever start or all are to end."""
        if self._proven and not self._orders:
            wait_s = delay_s(quick_deaths)
            logger.info("another worker starts %s", f"in {wait_s:g} s" if wait_s else "now")
            self._due.append((time.monotonic() + wait_s, quick_deaths))

    def _start(self, quick_deaths: int) -> None:
        line, workers_line = socket.socketpair()
        figures_line, workers_figures_line = socket.socketpair()
        with workers_line, workers_figures_line, _signals_held_back():
            try:
                pid = os.fork()
            except OSError as error:
                logger.error("no process for a worker: %s", error.strerror)
                _close([line, figures_line])
                self._start_later(quick_deaths + 1)
                return
            if pid == 0:
                _close([line, figures_line])
                self._become_worker(workers_line, workers_figures_line)
        worker = _Worker(pid, line, figures_line, time.monotonic(), quick_deaths)
        self._workers.append(worker)
        self._selector.register(line, selectors.EVENT_READ, partial(self._heard, worker))

    def _become_worker(self, line: socket.socket, figures_line: socket.socket) -> NoReturn:
        """In the new process: let go of what is the supervisor's, or its end would not be noticed, and work."""
        code = serving.FAILED
        try:
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ATTENDED)
            self._selector.close()
            lines = (line for worker in self._workers for line in (worker.line, worker.figures_line))
            _close([self._signals, self._signalled, *self._reserved, *lines])
            line.setblocking(False)
            figures_line.setblocking(False)
            code = self._work(line, figures_line)
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


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler, for being woken. (An ignored signal would stay ignored in the programs that a worker starts.)"""


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process that has just begun must not take its supervisor's signals for its own."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ATTENDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ATTENDED)


def _say(line: socket.socket, said: bytes) -> None:
    """To whoever is at the other end; nobody may be, which `_hear` tells."""
    with suppress(OSError):
        line.send(said)


def _hear(line: socket.socket) -> bytes:
    """What has come; nothing: the other end is gone."""
    try:
        return line.recv(4096)
    except ConnectionError:  # gone, with something unheard
        return b""


def _close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()
