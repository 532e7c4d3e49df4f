"""The scenarios: what is asked of a program under test, and the one figure that each is about."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from scripts.rig.clients import Clients

MEGABYTE = 1_000_000


class Watched(enum.Enum):
    """What is looked at while a scenario runs."""

    CPU = "cpu"
    MEMORY = "memory"
    """How much more it holds with all connections open than before, for each of them."""
    PEAK = "peak"
    """How much more it held at the worst moment than before."""
    START = "start"
    """Nothing runs: it is seen when the program starts, or on the disk."""


@dataclass(frozen=True, slots=True)
class Figure:
    """`value` names it among a measurement's values; shown divided by `divisor`. `compared`: as a ratio to nginx, too.

    `over_direct`: only what the program adds to the same clients without it.
    """

    value: str
    unit: str
    divisor: float = 1.0
    digits: int = 1
    compared: bool = False
    over_direct: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """`upstream` is what the model server is told. `once`: in the first round only; it hardly varies."""

    name: str
    title: str
    figure: Figure
    watched: Watched = Watched.CPU
    clients: Clients | None = None
    upstream: Mapping[str, int] = field(default_factory=dict)
    over_http: bool = True
    over_websocket: bool = True
    once: bool = False
    usual: bool = True
    """Whether it runs when no scenarios are named."""
    essential: bool = False
    """Whether it runs for peers that start slowly, too, when time is short."""
    usual_s: float = 0.0
    """How long it takes when all goes well; its clients give up only later."""

    @property
    def wants_fresh_program(self) -> bool:
        """Memory that an earlier scenario has left free would be taken again, and not be seen."""
        return self.watched in (Watched.MEMORY, Watched.PEAK)

    @property
    def files(self) -> int:
        """How many files the program must be able to open: a socket to each side, and some of its own."""
        if self.clients is None:
            return 0
        return self.clients.connections * (1 if self.clients.idle else 2) + 100


_AN_EVENT = Figure("cpu_us", "µs/event", compared=True)
_A_REQUEST = Figure("cpu_us", "µs/request", compared=True)


def _paced(
    name: str, title: str, streams: int, events_per_s: int, seconds: int, *, usual: bool = True, essential: bool = False
) -> Scenario:
    """Streams that begin within half a second and last for `seconds` each."""
    events = events_per_s * seconds
    clients = Clients(streams, seconds + 2.5, events, requests=streams, ramp_ms=500)
    upstream = {"events": events, "interval_us": 1_000_000 // events_per_s}
    return Scenario(
        name, title, _AN_EVENT, Watched.CPU, clients, upstream, usual=usual, essential=essential, usual_s=seconds + 0.6
    )


SCENARIOS = (
    _paced("S2", "200 streams, 50 events/s each: CPU", 200, 50, 4, essential=True),
    _paced("S2H", "200 streams, 125 events/s each: CPU", 200, 125, 4, usual=False),
    _paced("G10", "10 streams, 50 events/s each: CPU", 10, 50, 4, usual=False),
    _paced("G1000", "1,000 streams, 10 events/s each: CPU", 1000, 10, 4, usual=False),
    Scenario(
        "S1",
        "64 streams, as fast as they go: CPU",
        _AN_EVENT,
        Watched.CPU,
        Clients(64, 2, 500),
        {"events": 500},
        usual_s=2,
    ),
    Scenario(
        "S3",
        "small requests without streaming, 32 at a time: CPU",
        _A_REQUEST,
        Watched.CPU,
        Clients(32, 1.5),
        over_websocket=False,
        essential=True,
        usual_s=1.5,
    ),
    Scenario(
        "S4",
        "2,000 slow streams at once: memory",
        Figure("connection_bytes", "KB/stream", 1024),
        Watched.MEMORY,
        Clients(2000, 12, 3, requests=2000, ramp_ms=1500),
        {"events": 3, "interval_us": 1_000_000},
        once=True,
        usual_s=5.5,
    ),
    Scenario(
        "I1",
        "10,000 idle WebSocket sessions: memory",
        Figure("connection_bytes", "KB/session", 1024),
        Watched.MEMORY,
        Clients(10_000, 6, requests=10_000, ramp_ms=4000, idle=True),
        over_http=False,
        once=True,
        usual_s=6,
    ),
    Scenario(
        "P1",
        "a prompt of 1 MB: added time to the first byte",
        Figure("first_p50_us", "ms", 1000, 2, over_direct=True),
        Watched.CPU,
        Clients(1, 5, 1, requests=50, prompt_bytes=MEGABYTE),
        {"events": 1},
        usual_s=0.5,
    ),
    Scenario(
        "E1",
        "an event of 10 MB: memory at its worst",
        Figure("peak_bytes", "MB", MEGABYTE),
        Watched.PEAK,
        Clients(1, 10, 1, requests=3),
        {"events": 1, "event_bytes": 10 * MEGABYTE},
        once=True,
        usual_s=1,
    ),
    Scenario("S5", "from the start to the first answer", Figure("start_s", "s", 1, 2), Watched.START, essential=True),
    Scenario("import", "importing it", Figure("import_s", "s", 1, 2), Watched.START, once=True),
    Scenario("size", "installed", Figure("installed_bytes", "MB", MEGABYTE), Watched.START, once=True, essential=True),
    Scenario(
        "S0",
        "8 streams of 200 events: whether all of this works",
        _AN_EVENT,
        Watched.CPU,
        Clients(8, 10, 200, requests=8),
        {"events": 200, "interval_us": 2000},
        usual=False,
        usual_s=0.4,
    ),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
