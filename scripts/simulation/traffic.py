"""Clients of a simulation: when they come, what they ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random

from proxy.request import ProxyRequest, RequestBody
from proxy.routing.facts import RequestFacts
from scripts.simulation.gateway import Gateway, Request
from scripts.simulation.world import World

TURN_BYTES = 3000
"""What one turn adds to a conversation."""


def arrivals(rng: Random, per_s: float, until: float) -> Iterator[float]:
    """Moments at which clients come that do not know of each other."""
    moment = rng.expovariate(per_s)
    while moment < until:
        yield moment
        moment += rng.expovariate(per_s)


def skewed(rng: Random) -> Request:
    """Most answers are short, a few very long; 3 s of work on average."""
    return Request(prompt_s=0.2, answer_s=min(60.0, rng.lognormvariate(0.0, 1.45)))


def even(rng: Random) -> Request:
    return Request(prompt_s=0.2, answer_s=rng.uniform(1.0, 3.0))


def facts(messages: list[str], user: str) -> RequestFacts:
    """A chat request as the gateway reads it."""
    body = {"model": "m", "messages": [{"role": "user", "content": text} for text in messages], "user": user}
    raw = json.dumps(body).encode()
    return RequestFacts(ProxyRequest("/v1/chat/completions", "", (), (), RequestBody.parse(raw), "sim"), None)


class Conversation:
    """Turns that each repeat all before them, under a system prompt that others share; the next one comes some seconds
    after the last was answered."""

    def __init__(self, world: World, gateway: Gateway, rng: Random, name: str, system: str, turns: int) -> None:
        self._world = world
        self._gateway = gateway
        self._rng = rng
        self._name = name
        self._messages = [system]
        self._turns = turns

    def next_turn(self) -> None:
        if self._turns == 0:
            return
        self._turns -= 1
        self._messages.append(f"{self._name} {self._turns} " + "x" * TURN_BYTES)
        self._gateway.send(Request(0.02, self._rng.uniform(0.5, 2.0), facts(self._messages, self._name)))

    def think(self) -> None:
        self._world.after(self._rng.uniform(2.0, 12.0), self.next_turn)
