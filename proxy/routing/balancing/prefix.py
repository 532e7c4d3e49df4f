"""`prefix`: a request goes where the longest beginning of its prompt has been before, and is still computed.

Model servers keep what they computed of a prompt; a conversation's next turn, or another question under the same long
system prompt, is answered sooner where that is. What has been where is remembered here, by each worker for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from proxy.routing.balancing.least_busy import LeastBusy
from proxy.routing.balancing.load import has_room
from proxy.routing.facts import RequestFacts
from proxy.routing.replica import Replica
from proxy.routing.standing import Standing

MOST_ENTRIES = 1 << 15
"""About 6 MB a route. The least recently seen are forgotten first, as the model servers do it."""
MOST_PLACES = 4
"""Replicas remembered for one beginning, the latest first."""


class Prefix:
    """Of replicas that are equally warm, and for prompts that are new, the least busy one. A warm replica with clearly
    more than its share to do is passed over: computing again is cheaper than waiting."""

    __slots__ = ("_cold", "_places")

    def __init__(self) -> None:
        self._cold = LeastBusy()
        self._places: OrderedDict[int, tuple[Standing, ...]] = OrderedDict()
        """Where a beginning, by its hash, has been. Standings, as they outlive a reload."""

    def pick(self, replicas: Sequence[Replica], facts: RequestFacts | None = None, now: float = 0.0) -> Replica:
        blocks = [] if facts is None else facts.prompt_blocks()
        if not blocks:
            return self._cold.pick(replicas, facts, now)
        picked = self._cold.pick(self._warmest(replicas, blocks) or replicas, facts, now)
        self._remember(blocks, picked.standing)
        return picked

    def entries(self) -> int:
        """How much is remembered."""
        return len(self._places)

    def knows(self, facts: RequestFacts) -> bool:
        """Whether this whole prompt, to its last full block, is remembered."""
        return any(block in self._places for block in facts.prompt_blocks()[-1:])

    def _warmest(self, replicas: Sequence[Replica], blocks: Sequence[int]) -> list[Replica]:
        """Those with room that have seen the longest beginning."""
        with_room: list[Replica] | None = None
        for block in reversed(blocks):
            places = self._places.get(block)
            if places is None:
                continue
            if with_room is None:
                with_room = has_room(replicas)
            warm = [replica for replica in with_room if replica.standing in places]
            if warm:
                return warm
        return []

    def _remember(self, blocks: Sequence[int], standing: Standing) -> None:
        """A few beginnings of the prompt, closer together at its head, and the whole of it: the next turn begins so."""
        places = self._places
        for length in _landmarks(len(blocks)):
            block = blocks[length - 1]
            others = [place for place in places.pop(block, ()) if place is not standing]
            places[block] = (standing, *others[: MOST_PLACES - 1])
        while len(places) > MOST_ENTRIES:
            places.popitem(last=False)


def _landmarks(blocks: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, … up to `blocks`, and itself."""
    lengths = []
    length = 1
    while length < blocks:
        lengths.append(length)
        if length > 1 and length + length // 2 < blocks:
            lengths.append(length + length // 2)
        length *= 2
    return [*lengths, blocks]
