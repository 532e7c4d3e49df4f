"""Opening a connection to a model server, and words for what keeps it from being opened."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from proxy.errors import Unavailable, UpstreamUnreachable
from proxy.routing.replica import Origin

Made = TypeVar("Made", bound=asyncio.Protocol)


async def open_connection(
    make_protocol: Callable[[], Made], origin: Origin, timeout_s: float | None, tls: ssl.SSLContext | None
) -> Made:
    """The protocol of a new connection to `origin`, which is not a demo's.

    Raises `UpstreamUnreachable`, whose message has no address in it, or `Unavailable` where the fault is ours.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            _, protocol = await loop.create_connection(make_protocol, origin.host, origin.port, ssl=tls)
            return protocol
    except OSError as error:
        raise shortage(error) or unreachable(error, timeout_s) from error
    except UnicodeError as error:
        raise UpstreamUnreachable("its host name cannot be resolved") from error


def shortage(error: OSError) -> Unavailable | None:
    """What to say where this process, or this machine, can open nothing more; no model server is to blame."""
    if any(f"[Errno {number}]" in str(error) for number in (errno.EMFILE, errno.ENFILE)):
        return Unavailable("The gateway has as many connections as it may have.", retry_after_s=1.0)
    return None


def unreachable(error: OSError, timeout_s: float | None) -> UpstreamUnreachable:
    """What to say of a failure to connect within `timeout_s` seconds."""
    match error:
        case TimeoutError():  # ours, or, after minutes, the kernel's
            limit = f" ({timeout_s:g} s)" if timeout_s is not None else ""
            return UpstreamUnreachable(f"no connection within timeouts.connect{limit}")
        case ssl.SSLError():
            return UpstreamUnreachable(f"TLS failed ({error.reason or 'no reason given'})")
        case socket.gaierror():
            return UpstreamUnreachable("its host name cannot be resolved")
        case _:
            return UpstreamUnreachable(_refusal(error))


def _refusal(error: OSError) -> str:
    # Where a name has several addresses, asyncio joins what each one said into the text of one plain OSError.
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return "the connection was refused; is the model server running?"
    if isinstance(error, ConnectionResetError):
        return "the connection was reset"
    return "no connection could be made"
