"""A process's life: loop, log, garbage. Starts the gateway, says when it is ready, drains it when told to stop.

Who tells it is its overseer: `alone`, or `workers` where several processes serve on one port.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import resource
import sys
import time
from collections.abc import Callable
from typing import Literal

from aiohttp import http_parser

from proxy.app import Gateway
from proxy.config.model import Config
from proxy.overseer import FAILED, Overseer, StopOrders, exit_code
from proxy.ports import CannotListen, Ports
from proxy.telemetry import access_log
from proxy.telemetry.record import RequestRecord

LogFormat = Literal["text", "json"]
Publish = Callable[[RequestRecord], None]
COLLECT_AFTER = 10_000
"""So many more objects made than dropped, and the young ones are looked through for garbage."""
KEPT_BYTES = 4 << 20
"""Half of what the C library may keep for the next prompt."""

logger = logging.getLogger("penstock")


def serve(config: Config, ports: Ports, publish: Publish, overseer: Overseer) -> int:
    """Serve until the overseer orders to stop; the process's exit code. What keeps it from starting is logged."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        logger.error("aiohttp has no compiled parser here, and its other one is not strict enough: install its wheel")
        return FAILED
    _take_all_descriptors()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(config, ports, publish, overseer))


async def _serve(config: Config, ports: Ports, publish: Publish, overseer: Overseer) -> int:
    gateway = Gateway(config, publish, overseer.gather)
    orders = StopOrders()
    await overseer.attend(orders, gateway)
    try:
        url = await gateway.start(ports)
    except (CannotListen, OSError) as error:
        logger.error("%s", cannot_start(error))
        overseer.stopping()
        await gateway.stop()
        return FAILED
    _collect_garbage_seldom()
    _keep_freed_memory()
    overseer.ready(url)
    await orders.first
    overseer.stopping()
    draining = asyncio.ensure_future(gateway.drain())
    orders.second.add_done_callback(lambda _: draining.cancel())
    await asyncio.wait([draining])
    hurried = draining.cancelled()
    await gateway.stop()
    return exit_code(orders.first.result(), hurried=hurried)


def _take_all_descriptors() -> None:
    """Each client and each exchange is a file descriptor; a shell's usual 1,024 of them are a few hundred streams."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _collect_garbage_seldom() -> None:
    """What the start made stays, and is looked at no more. What requests make is mostly gone without a collection: by
    default one would come every few requests, and look through all open streams every few thousand."""
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def _keep_freed_memory() -> None:
    """The end of the heap goes back to the system as soon as it is free, and every prompt of a megabyte would be copied
    into fresh pages again: a third of its time. glibc keeps twice as much as the largest block that it has seen come
    and go; elsewhere this does nothing."""
    bytes(KEPT_BYTES)


def cannot_start(error: CannotListen | OSError) -> str:
    """What the operator can do about what `Gateway.start` raised."""
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


def set_up_log(log_format: LogFormat, log_level: str) -> Publish:
    """Send the program's log lines to standard error, and those of the requests given to what this returns."""
    threshold = logging.getLevelNamesMapping()[log_level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(access_log.JsonFormatter() if log_format == "json" else access_log.TextFormatter())
    logging.basicConfig(level=threshold, handlers=[handler], force=True)

    def publish(record: RequestRecord) -> None:
        if access_log.level(record) >= threshold:
            sys.stderr.write(access_log.line(record, time.time(), log_format) + "\n")
            sys.stderr.flush()

    return publish
