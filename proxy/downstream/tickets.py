"""`POST /v1/ws/tickets`: a ticket for a WebSocket, for the holder of a key."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from proxy.access.keys import Key
from proxy.access.tickets import LIFETIME_S, Tickets
from proxy.downstream.edge import RECORD
from proxy.downstream.gate import Gate
from proxy.errors import Unauthorized

TICKETS_PATH: Final = "/v1/ws/tickets"
TICKET: Final = "ticket"
"""The member of an upgrade's query that shows one."""


class TicketApi:
    """Issues tickets, and takes them back at the upgrade."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._tickets = Tickets()
        self._loop = asyncio.get_running_loop()

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_post(TICKETS_PATH, self.issue)

    async def issue(self, request: web.Request) -> web.Response:
        key = self._gate.admit(request)
        request[RECORD].key = key.name if key is not None else None
        ticket = self._tickets.issue(key, request.headers.get("Origin"), self._loop.time())
        told = {"ticket": ticket, "expires_in": int(LIFETIME_S)}
        return web.json_response(told, status=201, headers={"Cache-Control": "no-store"})

    def redeem(self, request: web.Request) -> Key | None:
        """The key that the upgrade's ticket stands for. Raises `Unauthorized`."""
        good, key = self._tickets.redeem(request.query[TICKET], request.headers.get("Origin"), self._loop.time())
        if not good:
            raise Unauthorized("The ticket is used up, too old, or of another origin: ask for a new one.")
        return key
