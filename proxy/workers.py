"""Several processes on one port: what each of them is, besides one that serves. Who watches over them is `supervisor`.

Each worker has a listening socket of its own, and the kernel deals the connections out; one that was passed they share.
What is counted in memory is each worker's own; `worker_metrics` adds it up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

from proxy.app import Gateway
from proxy.lines import hear_orders, say
from proxy.overseer import CANNOT_GO_ON, FAILED, Shell, StopOrders
from proxy.ports import CannotListen, open_ports
from proxy.reload import Reload, Reloader, say_pending
from proxy.serving import LogFormat, cannot_start, serve, set_up_log
from proxy.supervisor import Supervisor
from proxy.worker_metrics import FiguresLine

logger = logging.getLogger("penstock")


def run(reloader: Reloader, shell: Shell, *, log_format: LogFormat, log_level: str) -> int:
    """Serve with `server.workers` processes until a signal; the program's exit code. No event loop may exist yet."""
    publish = set_up_log(log_format, log_level)
    config = reloader.last.config
    if not (hasattr(socket, "SO_REUSEPORT") and hasattr(os, "fork")):
        logger.error("this system cannot share a port among processes: leave --workers and server.workers at 1")
        return FAILED
    try:
        ports = open_ports(config, shell.passed, join=shell.joins)
    except CannotListen as error:
        logger.error("%s", cannot_start(error))
        return FAILED
    say_pending(config)

    def work(line: socket.socket, figures_line: socket.socket, last: Reload) -> int:
        try:
            own = ports.again()
        except CannotListen as error:
            logger.error("%s", cannot_start(error))
            return FAILED
        ports.close_kept()
        return serve(last.config, own, publish, _Line(line, FiguresLine(figures_line), last))

    return Supervisor(config.server.workers, work, ports, reloader, shell.notify).run()


class _Line:
    """A worker's side of the line to its supervisor: says the URL once, and hears the numbers of signals, and what came
    of reading the configuration again. One that cannot take it up ends, once its streams have: another one starts with
    it, and none ever goes on with something else than the others.

    A terminal, or a service manager, signals the supervisor and the workers alike: what reaches a worker itself does
    not count, or one Ctrl-C would be two. A line that ends means that the supervisor is gone: drain.
    """

    def __init__(self, line: socket.socket, figures_line: FiguresLine, last: Reload) -> None:
        self._line = line
        self._last = last
        self._figures_line = figures_line
        self.gather = figures_line.gather

    async def attend(self, orders: StopOrders, gateway: Gateway) -> None:
        gateway.take_up(self._last)
        asyncio.get_running_loop().add_reader(self._line, self._heard, orders, gateway)
        await self._figures_line.attend(gateway.figures)

    def ready(self, url: str) -> None:
        say(self._line, url.encode())

    def stopping(self) -> None:
        """The supervisor tells whoever started it."""

    def _heard(self, orders: StopOrders, gateway: Gateway) -> None:
        numbers, reloads = hear_orders(self._line)
        for number in numbers:
            if number != signal.SIGHUP:
                orders.give(number)
        if reloads and not orders.first.done():
            self._take_up(reloads[-1], orders, gateway)
        if not numbers:
            asyncio.get_running_loop().remove_reader(self._line)
            if not orders.first.done():
                orders.give(signal.SIGTERM)

    def _take_up(self, reload: Reload, orders: StopOrders, gateway: Gateway) -> None:
        try:
            gateway.take_up(reload)
        except Exception:
            logger.exception(
                "worker %d cannot take up a configuration that is right, and will be replaced", os.getpid()
            )
            orders.give(CANNOT_GO_ON)
