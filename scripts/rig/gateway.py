"""The gateway's own rows: each way it can be used, and each setting that is worth a row."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.rig.model_server import MODEL
from scripts.rig.peer import Command, Peer, Place
from scripts.rig.places import CHECKOUT


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the gateway's own: how it is asked, and what its `server` section says beside host and port. `mux`: so
    many streams share a socket."""

    name: str
    websocket: str | None = None
    mux: int = 0
    server: str = ""
    usual: bool = True


VARIANTS = (
    Variant("gateway"),
    Variant("gateway-ws", websocket="/v1/ws"),
    Variant("gateway-mux", websocket="/v1/ws", mux=8, usual=False),
    Variant("gateway-gather", server="gather: auto", usual=False),
)


def gateways(arguments: str = "") -> list[Peer]:
    """The gateway's rows; `arguments` are added to its command line."""
    return [
        Peer(
            variant.name,
            _gateway_command(variant, shlex.split(arguments)),
            websocket=variant.websocket,
            mux=variant.mux,
            imports="proxy.__main__; proxy.__main__.load_server()",
            distributions=("penstock",),
            usual=variant.usual,
            started_in=CHECKOUT,
        )
        for variant in VARIANTS
    ]


def _gateway_command(variant: Variant, arguments: Sequence[str]) -> Command:
    def command(place: Place) -> Sequence[str]:
        server = ", ".join(filter(None, ["host: 127.0.0.1", f"port: {place.port}", variant.server]))
        routes = f"server: {{{server}}}\nroutes: {{{MODEL}: {{replicas: ['{place.upstream}'], health: none}}}}\n"
        file = place.file("routes.yaml", routes)
        return [sys.executable, "-m", "proxy", "serve", "-c", file, "--log-level", "warning", *arguments]

    return command
