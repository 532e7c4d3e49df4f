"""A process's life: loop, log, signals. Starts the gateway, says when it is ready, drains it when told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import sys
import time
from collections.abc import Callable
from typing import Literal

from aiohttp import http_parser

from proxy.app import CannotListen, Gateway
from proxy.config.model import Config
from proxy.telemetry import access_log
from proxy.telemetry.record import RequestRecord

LogFormat = Literal["text", "json"]
DONE, FAILED, INTERRUPTED = 0, 1, 130

logger = logging.getLogger("penstock")


def run(config: Config, *, log_format: LogFormat, log_level: str) -> int:
    """Serve until a signal; the process's exit code."""
    threshold = _set_up_logging(log_format, log_level)
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        logger.error("aiohttp has no compiled parser here, and its other one is not strict enough: install its wheel")
        return FAILED

    def publish(record: RequestRecord) -> None:
        if access_log.level(record) >= threshold:
            sys.stderr.write(access_log.line(record, time.time(), log_format) + "\n")
            sys.stderr.flush()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(config, publish))


async def _serve(config: Config, publish: Callable[[RequestRecord], None]) -> int:
    gateway = Gateway(config, publish)
    signals = _Signals()
    try:
        url = await gateway.start()
    except (CannotListen, OSError) as error:
        logger.error("%s", _cannot_start(error))
        await gateway.stop()
        return FAILED
    print(f"penstock listening on {url}", flush=True)
    await signals.first
    draining = asyncio.ensure_future(gateway.drain())
    signals.second.add_done_callback(lambda _: draining.cancel())
    await asyncio.wait([draining])
    hurried = draining.cancelled()
    await gateway.stop()
    return INTERRUPTED if hurried or signals.first.result() == signal.SIGINT else DONE


class _Signals:
    """SIGTERM and SIGINT: `first` asks to drain, `second` to stop at once; each is done with the signal's number."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[int] = loop.create_future()
        self.second: asyncio.Future[int] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    def _received(self, number: int) -> None:
        for future in (self.first, self.second):
            if not future.done():
                future.set_result(number)
                return


def _cannot_start(error: CannotListen | OSError) -> str:
    if not isinstance(error, CannotListen):
        return "server.tls: the certificate and its key cannot be used; are they PEM files that belong together?"
    host, port = error.address
    another = "--port" if error.setting == "server" else error.setting
    cause = error.__cause__
    match cause.errno if isinstance(cause, OSError) else None:
        case errno.EADDRINUSE:
            return f"port {port} on {host} is in use: stop the other program, or choose another with {another}"
        case errno.EACCES:
            return f"port {port} on {host} is not permitted: choose one above 1023 with {another}"
        case _:
            return f"cannot listen on {host}, port {port}: {getattr(cause, 'strerror', None) or type(cause).__name__}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _set_up_logging(log_format: LogFormat, log_level: str) -> int:
    """Send the program's log lines to standard error; the threshold as a number."""
    threshold = logging.getLevelNamesMapping()[log_level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(access_log.JsonFormatter() if log_format == "json" else access_log.TextFormatter())
    logging.basicConfig(level=threshold, handlers=[handler], force=True)
    return threshold
