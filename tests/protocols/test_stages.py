"""Errors on the stream routes: a `detail`."""

from __future__ import annotations

import json

from proxy.errors import Unauthorized
from proxy.protocols.failure import Failure
from proxy.protocols.stage_request import UnprocessableRequest
from proxy.protocols.stages import STAGES


def test_an_error_is_a_detail_in_words() -> None:
    assert STAGES.error_body(Unauthorized('Give a "key".'), "req_1") == b'{"detail":"Give a \\"key\\"."}'


def test_a_body_of_the_wrong_shape_is_told_place_by_place() -> None:
    problems: list[dict[str, object]] = [{"loc": ["body", "stage_id"], "msg": "Field required", "type": "missing"}]
    assert json.loads(STAGES.error_body(UnprocessableRequest(problems), "req_1")) == {"detail": problems}


def test_an_upstreams_failure_reads_the_same() -> None:
    assert STAGES.failure_body(Failure(500, {"message": "broken", "code": 1}), "req_1") == b'{"detail":"broken"}'
