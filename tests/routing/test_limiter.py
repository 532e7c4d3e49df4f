"""Admission: places, a fair queue, and what is said to those who get neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.limiter import Limiter, RouteRules, Stage, Ticket
from scripts.simulation.scenarios import greedy_key


def limiter(streams: int | None = 1, queue: int = 256) -> Limiter:
    return Limiter(RouteRules(streams, queue, 30.0))


def enter(limits: Limiter, key: str = "web", now: float = 100.0) -> Ticket:
    return limits.enter(key, now)[0]


def test_without_a_limit_everybody_is_admitted() -> None:
    limits = limiter(streams=None)
    tickets = [enter(limits) for _ in range(1000)]
    assert {ticket.stage for ticket in tickets} == {Stage.ADMITTED}
    assert (limits.in_flight, limits.waiting) == (1000, 0)


def test_places_are_taken_and_given_back() -> None:
    limits = limiter(streams=2)
    one, two, three = (enter(limits) for _ in range(3))
    assert [one.stage, two.stage, three.stage] == [Stage.ADMITTED, Stage.ADMITTED, Stage.WAITING]
    assert (limits.in_flight, limits.waiting) == (2, 1)
    assert limits.leave(one, 101.0) == [three]
    assert three.stage is Stage.ADMITTED
    assert (limits.in_flight, limits.waiting) == (2, 0)
    assert limits.leave(two, 102.0) == []
    assert limits.leave(three, 102.0) == []
    assert limits.in_flight == 0


def test_keys_are_served_in_turn() -> None:
    limits = limiter()
    serving = enter(limits)
    waiting = {name: enter(limits, name[0]) for name in ("a1", "a2", "a3", "b1", "c1", "b2")}
    names = {ticket: name for name, ticket in waiting.items()}
    served = []
    for _ in range(6):
        (serving,) = limits.leave(serving, 101.0)
        served.append(names[serving])
    assert served == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_positions_are_the_order_of_service() -> None:
    limits = limiter()
    serving = enter(limits)
    waiting = [enter(limits, key) for key in "aaabcbda"]
    while waiting:
        positions = {limits.position(ticket): ticket for ticket in waiting}
        assert sorted(positions) == list(range(1, len(waiting) + 1))
        (serving,) = limits.leave(serving, 101.0)
        assert serving is positions[1]
        waiting.remove(serving)


def test_who_leaves_the_queue_is_gone_at_once() -> None:
    limits = limiter()
    first, second, third = enter(limits), enter(limits, "a"), enter(limits, "b")
    assert limits.leave(second, 101.0) == []
    assert (second.stage, limits.waiting, limits.position(third)) == (Stage.LEFT, 1, 1)
    assert limits.leave(first, 102.0) == [third]
    assert limits.leave(second, 103.0) == []
    assert limits.in_flight == 1


def test_leaving_twice_frees_one_place() -> None:
    limits = limiter(streams=2)
    one, _ = enter(limits), enter(limits)
    limits.leave(one, 101.0)
    limits.leave(one, 101.0)
    assert limits.in_flight == 1


def test_a_full_queue_refuses_with_the_time_the_queue_takes() -> None:
    limits = limiter(queue=3)
    serving = enter(limits)
    for now in (101.0, 103.0, 105.0):  # a place every two seconds
        while limits.waiting < 3:
            enter(limits, now=now)
        (serving,) = limits.leave(serving, now)
    enter(limits, now=105.0)
    refused = enter(limits, now=105.0)
    assert refused.stage is Stage.REFUSED
    assert refused.refusal is not None
    assert (refused.refusal.code, refused.refusal.status, refused.refusal.retry_after_s) == ("queue_full", 429, 8.0)
    assert refused.refusal.message == "All places of this model are taken, and 3 requests wait for one."
    assert limits.leave(refused, 105.0) == []
    assert (limits.in_flight, limits.waiting) == (1, 3)


def test_the_time_in_which_there_was_room_does_not_count() -> None:
    limits = limiter(streams=2, queue=0)
    first, second = enter(limits), enter(limits)
    limits.leave(first, 100.0)
    limits.leave(second, 100.0)
    for start in (200.0, 202.0, 204.0):  # busy again after a long calm: two places in two seconds
        pair = [enter(limits, now=start), enter(limits, now=start)]
        limits.leave(pair[0], start + 1.0)
        pair[0] = enter(limits, now=start + 1.0)
        for ticket in pair:
            limits.leave(ticket, start + 2.0)
    for _ in range(2):
        enter(limits, now=206.0)
    refused = enter(limits, now=206.0)
    assert refused.refusal is not None
    assert refused.refusal.retry_after_s <= 3.0


def test_without_a_queue_a_full_route_refuses() -> None:
    limits = limiter(queue=0)
    enter(limits)
    assert enter(limits).stage is Stage.REFUSED


def test_in_a_full_queue_the_greediest_key_makes_room_for_one_with_less() -> None:
    limits = limiter(queue=3)
    enter(limits, "greedy")
    greedy = [enter(limits, "greedy") for _ in range(3)]
    polite, displaced = limits.enter("polite", 101.0)
    assert displaced == [greedy[2]]
    assert polite.stage is Stage.WAITING
    assert greedy[2].stage is Stage.REFUSED
    assert greedy[2].refusal is not None
    assert greedy[2].refusal.code == "queue_full"
    assert limits.waiting == 3
    again, displaced = limits.enter("polite", 101.0)  # two of three would be no fairer
    assert (again.stage, displaced) == (Stage.REFUSED, [])


def test_a_key_does_not_make_room_for_itself() -> None:
    limits = limiter(queue=2)
    waiting = [enter(limits) for _ in range(3)]
    assert enter(limits).stage is Stage.REFUSED
    assert [ticket.stage for ticket in waiting[1:]] == [Stage.WAITING, Stage.WAITING]


def test_a_wait_that_was_too_long_is_a_503() -> None:
    limits = limiter()
    enter(limits)
    late = enter(limits, now=100.0)
    limits.time_out(late, 130.0)
    assert late.stage is Stage.REFUSED
    assert late.refusal is not None
    assert (late.refusal.code, late.refusal.status) == ("queue_timeout", 503)
    assert late.refusal.message == "All places of this model were taken for 30 s."
    assert limits.waiting == 0


def test_a_turn_that_comes_with_the_timeout_counts() -> None:
    limits = limiter()
    serving, waiting = enter(limits), enter(limits)
    limits.leave(serving, 130.0)
    limits.time_out(waiting, 130.0)
    assert (waiting.stage, waiting.refusal) == (Stage.ADMITTED, None)


def test_a_waiting_client_can_be_told_how_long_it_takes() -> None:
    limits = limiter()
    serving = enter(limits)
    waiting = [enter(limits) for _ in range(9)]
    for now in (102.0, 105.0, 108.0):
        (serving,) = limits.leave(serving, now)
    assert limits.position(waiting[5]) == 3
    assert limits.wait_s(waiting[5], 108.0) == 9.0


def test_a_reload_that_gives_more_places_lets_more_in() -> None:
    limits = limiter()
    tickets = [enter(limits) for _ in range(5)]
    limits.rules = RouteRules(3, 256, 30.0)
    assert limits.admit() == tickets[1:3]
    limits.rules = RouteRules(1, 0, 30.0)
    assert limits.admit() == []
    assert [ticket.stage for ticket in tickets[3:]] == [Stage.WAITING, Stage.WAITING]
    for ticket in tickets[:2]:
        assert limits.leave(ticket, 101.0) == []
    assert limits.leave(tickets[2], 101.0) == [tickets[3]]
    limits.rules = RouteRules(None, 0, 30.0)
    assert limits.admit() == [tickets[4]]


@given(
    st.lists(st.tuples(st.sampled_from("abc-t"), st.integers(0, 30)), max_size=120),
    st.integers(1, 4),
    st.integers(0, 6),
)
def test_whatever_happens_the_counts_are_right(steps: list[tuple[str, int]], streams: int, queue: int) -> None:
    limits, tickets = limiter(streams, queue), list[Ticket]()
    for number, (step, which) in enumerate(steps):
        if step in "abc":
            tickets.append(enter(limits, step, float(number)))
        elif tickets:
            ticket = tickets[which % len(tickets)]
            if step == "t":
                limits.time_out(ticket, float(number))
            else:
                limits.leave(ticket, float(number))
        stages = [ticket.stage for ticket in tickets]
        assert limits.in_flight == stages.count(Stage.ADMITTED) <= streams
        assert limits.waiting == stages.count(Stage.WAITING) <= queue
        assert not limits.waiting or limits.in_flight == streams
        positions = sorted(limits.position(ticket) for ticket in tickets if ticket.stage is Stage.WAITING)
        assert positions == list(range(1, limits.waiting + 1))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_that_asks_for_much_waits_for_itself(seed: int) -> None:
    fair, unfair = greedy_key(seed, fair=True), greedy_key(seed, fair=False)
    assert fair.polite < 2.0
    assert unfair.polite > 8 * fair.polite
    assert fair.polite_refused == 0
    assert fair.greedy < 1.5 * unfair.greedy
