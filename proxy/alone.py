"""A process that serves by itself: signals come to it, it reads the file again, and tells the service manager.

Several processes on one port are `workers`'.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from proxy.app import Gateway
from proxy.overseer import FAILED, Shell, StopOrders, say_ready, status
from proxy.ports import CannotListen, open_ports
from proxy.reload import LOOK_EVERY_S, Reloader, say_pending
from proxy.serving import LogFormat, cannot_start, serve, set_up_log
from proxy.systemd import NotifySocket

logger = logging.getLogger("penstock")


def run(reloader: Reloader, shell: Shell, *, log_format: LogFormat, log_level: str) -> int:
    """Serve until a signal; the process's exit code."""
    publish = set_up_log(log_format, log_level)
    config = reloader.last.config
    try:
        ports = open_ports(config, shell.passed, join=shell.joins)
    except CannotListen as error:
        logger.error("%s", cannot_start(error))
        return FAILED
    say_pending(config)
    return serve(config, ports, publish, _Alone(reloader, shell.notify))


class _Alone:
    """The overseer of a process that serves by itself: signals come to it, and it reads the configuration."""

    gather = None

    def __init__(self, reloader: Reloader, notify: NotifySocket) -> None:
        self._reloader = reloader
        self._notify = notify
        self._url = ""
        self._hung_up = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def attend(self, orders: StopOrders, gateway: Gateway) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, orders.give, number)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up.set)
        self._tasks = [loop.create_task(self._reload_when_asked(gateway)), loop.create_task(self._stay_alive())]

    def ready(self, url: str) -> None:
        say_ready(url)
        self._url = url
        self._notify.ready(status(url, self._reloader.last))

    def stopping(self) -> None:
        self._notify.stopping()
        self._tasks[0].cancel()

    async def _reload_when_asked(self, gateway: Gateway) -> None:
        """By SIGHUP, or by a change of the file."""
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._hung_up.wait()
            except TimeoutError:
                if not self._reloader.is_due():
                    continue
            self._hung_up.clear()
            self._notify.reloading()
            gateway.count_reload()
            reload = await asyncio.to_thread(self._reloader.reload)  # streams go on meanwhile
            try:
                gateway.take_up(reload)
            except Exception:
                logger.exception("a configuration that is right could not be taken up")
                gateway.take_up(self._reloader.give_up("it could not be taken up; the log says why"))
            if self._url:
                self._notify.ready(status(self._url, self._reloader.last))

    async def _stay_alive(self) -> None:
        """To the end of a drain: it is the event loop that is watched."""
        while (every_s := self._notify.alive_every_s) is not None:
            self._notify.alive()
            await asyncio.sleep(every_s)
