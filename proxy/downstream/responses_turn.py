"""One `response.create`: from its turn in its lane to its last frame, and the record it leaves.

What may run when is `streams.lanes`' to say; how frames and errors read, `wire.responses_frames`'.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Final

from proxy.downstream.responses_outlet import ResponseFrames, ResponsesOutlet
from proxy.downstream.stages import Client
from proxy.downstream.whole import Whole
from proxy.errors import BodyTooLarge, ClientError, GatewayError, InternalError, UpstreamError, UpstreamInvalid
from proxy.protocols.event_data import decoded
from proxy.protocols.failure import Failure, answer_error
from proxy.protocols.protocol import Watcher
from proxy.relay import Answer, Relay
from proxy.request import ProxyRequest, RequestBody
from proxy.streams.conversations import Conversation, Conversations, Unfolding, items_of, joined
from proxy.streams.stream import Stream
from proxy.telemetry.record import EndState, Phase, RequestRecord, end_state_of
from proxy.wire.bare import unexplained
from proxy.wire.frames import ping_frame
from proxy.wire.headers import new_request_id
from proxy.wire.json_object import is_json_object
from proxy.wire.responses import Create
from proxy.wire.responses_frames import error_payload, refusal_payload, told_in_events, warm_up_payloads
from proxy.wire.sse import Event, Parser

PATH: Final = "/v1/responses"
_LONGEST_LAST_EVENT_BYTES: Final = 1 << 62

logger = logging.getLogger("penstock")


class Cancelled(ClientError):
    """The client wants no more of it."""

    status = 499
    default_code = "cancelled"


class ResponseTurn:
    """One request, in the lane `lane`. The owner's duty: `run` it in `task`, or `withdraw` it; its `record` is finished
    then."""

    def __init__(
        self,
        create: Create,
        *,
        client: Client,
        relay: Relay,
        outlet: ResponsesOutlet,
        conversations: Conversations,
    ) -> None:
        self.lane = create.stream_id
        self.task: asyncio.Task[None] | None = None
        self._create = create
        self._client = client
        self._relay = relay
        self._outlet = outlet
        self._conversations = conversations
        self._frames = ResponseFrames(outlet, create.stream_id)
        self._loop = asyncio.get_running_loop()
        self._history = b""  # the items up to the response
        self._watcher: Watcher | None = None
        self._finished: asyncio.Future[GatewayError | None] | None = None
        self._begun = self._stopped = self._told = False
        self.record = RequestRecord(
            new_request_id(), "GET", PATH, self._loop.time(), transport="ws", dialect="responses"
        )
        self.record.key = client.key.name if client.key is not None else None
        self.record.phase = Phase.QUEUE

    async def run(self) -> None:
        """Serve it, to its last frame."""
        self._begun = True
        record = self.record
        record.add_queue_time(record.started, self._loop.time())
        record.status = 200
        try:
            if self._stopped:
                raise asyncio.CancelledError
            await self._serve()
        except asyncio.CancelledError:
            record.finish(EndState.CLIENT_CLOSED, self._loop.time())
            if not self._told:
                raise
            if not self._has_ended():
                self._break_off(_cancelled())
        except Exception as error:
            named = error if isinstance(error, GatewayError) else InternalError("The gateway failed; its log says why.")
            if named is not error:
                logger.exception("request %s failed", record.request_id)
            record.status = named.status
            record.finish(end_state_of(named), self._loop.time())
            self._conversations.forget(self.lane)
            self._break_off(named)
        finally:
            record.bytes_out = self._frames.bytes_out

    def cancel(self, response_id: str | None) -> None:
        """The client wants no more of it, if it is this response; unless it is at its end anyway."""
        if response_id is not None and response_id != self._frames.response_id:
            return
        if self._finished is None or not self._finished.done():
            self._told = True
            self.stop()

    def stop(self) -> None:
        """End it here. Cancelling a task that has not begun would leave no trace of it."""
        self._stopped = True
        if self._begun and self.task is not None:
            self.task.cancel()

    def withdraw(self, *, told: bool) -> None:
        """It does not get its turn. `told`: the client is there to hear of it."""
        self.record.finish(EndState.CLIENT_CLOSED, self._loop.time())
        if told:
            self._break_off(_cancelled())
            self.record.bytes_out = self._frames.bytes_out

    # ---- the way of the request ----

    async def _serve(self) -> None:
        request = self._request()
        route = self._relay.route(request, self._client.key, self.record)
        if not self._create.generate:
            self._warm_up(request.body.model)
            return
        self._outlet.break_silence(route.keepalive_s, self._ping)
        answer = await self._relay.open(request, route, self.record)
        self.record.status = answer.status
        try:
            await self._give(answer)
        finally:
            self._relay.close(answer, self.record)

    def _request(self) -> ProxyRequest:
        """The request over HTTP that asks for the same, with all the input that leads to it."""
        create, client, record = self._create, self._client, self.record
        written = create.members.get("input")
        if create.previous_response_id is None:
            self._history = items_of(written)
            raw = create.body()
        else:
            before = self._conversations.find(create.previous_response_id)
            self._history = joined(before.items, items_of(written))
            raw = create.body(input=b"[%b]" % self._history)
        record.bytes_in = len(raw)
        if len(raw) > self._conversations.most_bytes:
            raise BodyTooLarge("The conversation is larger than server.max_body: begin another, with less of it.")
        body = RequestBody.parse(raw)
        return ProxyRequest(PATH, "", client.headers, client.forwarded, body, record.request_id, client.crossing)

    def _warm_up(self, model: str) -> None:
        """Nothing is generated: the input is kept, and what comes next goes on from it."""
        response_id = "resp_" + secrets.token_hex(16)
        self._keep(Conversation(response_id, self._history))
        for payload in warm_up_payloads(response_id, model, int(time.time())):
            self._frames.say(payload)
        self.record.finish(EndState.COMPLETED, self._loop.time())

    # ---- the way of the answer ----

    async def _give(self, answer: Answer) -> None:
        self._watcher = answer.watcher
        if answer.failure is not None:
            self._tell_failure(answer, answer.failure)
        elif answer.events:
            await self._push(answer)
        elif answer.status >= 400:
            failure = answer_error(answer.body or b"")
            self._refuse(answer, failure.error if failure is not None else unexplained(answer.status))
        else:
            await self._tell_whole(answer)

    async def _push(self, answer: Answer) -> None:
        try:
            error = await self._follow(answer.stream, answer)
        finally:
            self._frames.part(answer.stream)
        if error is not None or answer.watcher.failure is not None:
            self._conversations.forget(self.lane)
        if error is not None:
            self._break_off(error)

    def _follow(self, stream: Stream, answer: Answer) -> asyncio.Future[GatewayError | None]:
        unfolding = Unfolding(self._history, self._conversations.most_bytes)
        self._finished = self._frames.follow(stream, unfolding, keep=self._keep, on_malformed=answer.on_malformed)
        return self._finished

    def _tell_failure(self, answer: Answer, failure: Failure) -> None:
        """An event or a body under status 200 said that the request failed, before there was anything to give."""
        if answer.watcher.complete:  # in the protocol's own way: `response.failed`
            code = failure.error.get("code")
            self._conversations.forget(self.lane)
            error = UpstreamError(failure.message, code=code if isinstance(code, str) else None)
            self._frames.say(_last_words(answer.watcher, error))
        else:
            self._refuse(answer, failure.error)

    def _refuse(self, answer: Answer, error: Mapping[str, object]) -> None:
        """The upstream's own error, with the status it has."""
        self._conversations.forget(self.lane)
        retry_after = next((value for name, value in answer.headers if name.lower() == "retry-after"), None)
        self._frames.say(refusal_payload(error, answer.status, retry_after))

    async def _tell_whole(self, answer: Answer) -> None:
        """A response that came in one piece, though it was asked to flow: its client reads events."""
        body = answer.body
        try:
            if body is None:
                body = await self._gathered(answer)
            response = decoded(body) if is_json_object(body) else None
            if response is None or not isinstance(response.get("id"), str):
                raise UpstreamInvalid("The model server answered with neither events nor a response.")
        except GatewayError as error:
            if answer.stream.error is None:  # not the answer's own end, so the record knows nothing of it
                self.record.finish(end_state_of(error), self._loop.time())
            raise
        stream = Stream()
        stream.publish([Event(told, told, told) for told in told_in_events(response)])
        stream.end()
        await self._follow(stream, answer)
        self._frames.part(stream)

    async def _gathered(self, answer: Answer) -> bytes:
        whole = Whole(self._conversations.most_bytes)
        answer.stream.attach(whole)
        error = await whole.finished
        if error is not None:
            raise error
        return b"".join(whole.pieces)

    # ---- within ----

    def _keep(self, conversation: Conversation) -> None:
        self._conversations.keep(self.lane, conversation)

    def _break_off(self, error: GatewayError) -> None:
        """The last frame of a response that does not come to its own end."""
        if self._watcher is not None and self._frames.begun:
            self._frames.say(_last_words(self._watcher, error))
        else:
            self._frames.say(error_payload(error))

    def _has_ended(self) -> bool:
        """Whether the response's own last event has gone out: it may overtake a cancel that is being carried out."""
        return self._watcher is not None and (self._watcher.complete or self._watcher.failure is not None)

    def _ping(self) -> None:
        self._outlet.put(ping_frame())


def _last_words(watcher: Watcher, error: GatewayError) -> bytes:
    """The protocol's last event for a response that broke off."""
    [event] = Parser(_LONGEST_LAST_EVENT_BYTES).feed(watcher.terminal_error(error))
    return event.data


def _cancelled() -> Cancelled:
    return Cancelled("The response was cancelled.")
