"""Orders and what becomes of them."""

from __future__ import annotations

import signal

import pytest

from proxy.config.model import Config
from proxy.overseer import CANNOT_GO_ON, DONE, FAILED, INTERRUPTED, StopOrders, exit_code, say_ready, status
from proxy.reload import Reload


async def test_the_first_two_orders_count() -> None:
    orders = StopOrders()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        orders.give(number)
    assert (orders.first.result(), orders.second.result()) == (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize(
    ("first", "hurried", "code"),
    [
        (signal.SIGTERM, False, DONE),
        (signal.SIGTERM, True, INTERRUPTED),
        (signal.SIGINT, False, INTERRUPTED),
        (CANNOT_GO_ON, False, FAILED),
        (CANNOT_GO_ON, True, FAILED),
    ],
)
def test_the_exit_code_says_how_it_ended(first: int, hurried: bool, code: int) -> None:
    assert exit_code(first, hurried=hurried) == code


def test_the_ready_line_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    say_ready("http://127.0.0.1:1")
    assert capsys.readouterr() == ("penstock listening on http://127.0.0.1:1\n", "")


def test_the_status_says_where_and_what_is_wrong_with_the_file() -> None:
    config = Config.model_validate({})
    assert status("http://h:1", Reload(config, 0.0)) == "serving on http://h:1"
    refused = Reload(config, 0.0, ("routes.yaml:2: no", "routes.yaml:3: nor this"))
    assert status("http://h:1", refused) == (
        "serving on http://h:1; the configuration was not taken up: routes.yaml:2: no"
    )
