"""Whatever clients do to it, the gateway's own log stays free of tracebacks, errors and lost exceptions."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "websockets")  # the client: it writes every frame down
    yield caplog
    gc.collect(1)  # a task whose exception nobody took complains only now
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    assert [record.getMessage() for record in records if record.levelno >= logging.ERROR or record.exc_info] == []
