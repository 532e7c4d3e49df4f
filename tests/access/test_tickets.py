"""Tickets: good once, soon, for one origin, in the name of one key."""

from __future__ import annotations

import pytest

from proxy.access.keys import Key
from proxy.access.tickets import LIFETIME_S, MOST, Tickets

WEB = Key("web")
PAGE = "https://app.example.com"
REFUSED = (False, None)


def test_a_ticket_lets_its_key_in() -> None:
    tickets = Tickets()
    assert tickets.redeem(tickets.issue(WEB, PAGE, 0), PAGE, LIFETIME_S - 1) == (True, WEB)
    assert tickets.redeem(tickets.issue(None, None, 0), None, 0) == (True, None)


def test_a_ticket_is_good_once() -> None:
    tickets = Tickets()
    ticket = tickets.issue(WEB, PAGE, 0)
    tickets.redeem(ticket, PAGE, 0)
    assert tickets.redeem(ticket, PAGE, 0) == REFUSED


def test_a_ticket_is_good_for_thirty_seconds() -> None:
    tickets = Tickets()
    assert tickets.redeem(tickets.issue(WEB, PAGE, 0), PAGE, 30.0) == REFUSED


@pytest.mark.parametrize("origin", [None, "https://other.example.com", "null", PAGE + ":8443"])
def test_a_ticket_is_good_for_its_origin_and_lost_on_another(origin: str | None) -> None:
    tickets = Tickets()
    ticket = tickets.issue(WEB, PAGE, 0)
    assert tickets.redeem(ticket, origin, 0) == REFUSED
    assert tickets.redeem(ticket, PAGE, 0) == REFUSED


def test_a_ticket_without_a_page_is_not_for_one() -> None:
    tickets = Tickets()
    assert tickets.redeem(tickets.issue(WEB, None, 0), PAGE, 0) == REFUSED


@pytest.mark.parametrize("ticket", ["", "x", "ü\ud800", "x" * 100_000])
def test_what_is_no_ticket_is_refused(ticket: str) -> None:
    assert Tickets().redeem(ticket, None, 0) == REFUSED


def test_tickets_cannot_be_guessed_from_each_other() -> None:
    tickets = Tickets()
    issued = [tickets.issue(WEB, None, 0) for _ in range(1000)]
    assert len(set(issued)) == 1000
    assert {len(ticket) for ticket in issued} == {32}


def test_the_oldest_goes_for_one_too_many() -> None:
    tickets = Tickets()
    issued = [tickets.issue(WEB, None, 0) for _ in range(MOST + 1)]
    assert tickets.redeem(issued[0], None, 0) == REFUSED
    assert tickets.redeem(issued[1], None, 0) == (True, WEB)


def test_late_ones_are_forgotten_when_one_is_issued() -> None:
    tickets = Tickets()
    for now in range(100):
        tickets.issue(WEB, None, now)
    assert len(tickets._out) == LIFETIME_S
