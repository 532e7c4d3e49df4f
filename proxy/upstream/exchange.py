"""One exchange: one request and its answer with one replica, from the first byte sent to the end of the answer.

It finds events in what the connection pushes, holds them back until the commit point, and pushes them into the stream
from then on. What to do when it fails (another replica, a status) is dispatch's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec import Struct

from proxy.errors import GatewayError, UpstreamError, UpstreamInvalid, UpstreamTruncated
from proxy.protocols.event_data import is_done
from proxy.protocols.failure import Failure, answer_error
from proxy.protocols.protocol import Sighting, Watcher
from proxy.routing.replica import Headers
from proxy.routing.table import Timeouts
from proxy.streams.stream import Stream
from proxy.upstream.answer_head import AnswerHead
from proxy.upstream.connection import UpstreamConnection
from proxy.upstream.redaction import Redaction
from proxy.wire.json_members import Piece
from proxy.wire.sse import Event, EventTooLarge, Parser, plain_event

WHOLE_BYTES = 256 * 1024
"""An answer that is no event stream is held until it is whole, up to this size; past it, its bytes flow.
An error answer never flows: it is redacted as a whole."""
LARGEST_READ_BYTES = 256 * 1024
"""No loop reads more at once."""
UNLIKE_ANY = b"none yet"
"""No single byte is like it: there is nothing usual about the next read."""
PREAMBLE_S = 0.05
"""How long preamble events wait for content before they go out alone."""

CONTENT = Sighting.CONTENT
QUOTE, LF, CR = b'"\n\r'


class Opening(Struct, frozen=True):
    """The answer at its commit point: whole (`body`), or flowing through the stream (as events, if `events`).

    `failure` is set, and `body` empty, where an event or a body under status 200 said that the request failed;
    `status` is then the failure's own.
    """

    status: int
    headers: Headers
    body: bytes | None
    events: bool = False
    failure: Failure | None = None


class Exchange:
    """A connection's receiver and a stream's source. `on_closed` is called once, when it no longer needs the replica.

    `credentials`: the replica's own headers, taken out of its error answers and error events.
    """

    __slots__ = (
        "_committed",
        "_connection",
        "_credentials",
        "_ends_with_body",
        "_error_seen",
        "_feed",
        "_head",
        "_held",
        "_loop",
        "_max_event_bytes",
        "_now",
        "_observe",
        "_on_closed",
        "_on_malformed",
        "_parser",
        "_pattern",
        "_pattern_end",
        "_pattern_start",
        "_paused",
        "_preamble_timer",
        "_spoken",
        "_stream",
        "_streaming",
        "_timeouts",
        "_usual_end",
        "_usual_end_bytes",
        "_usual_start",
        "_usual_start_bytes",
        "_watcher",
        "_whole",
        "_whole_bytes",
        "last_read",
        "opened",
    )

    def __init__(
        self,
        *,
        stream: Stream,
        watcher: Watcher,
        streaming: bool,
        max_event_bytes: int,
        timeouts: Timeouts,
        credentials: Headers,
        on_closed: Callable[[], None],
        on_malformed: Callable[[], None],
        now: Callable[[], float] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = now or self._loop.time
        self.last_read = self._now()
        self._stream = stream
        self._watcher = watcher
        self._observe = watcher.observe
        self._streaming = streaming
        self._max_event_bytes = max_event_bytes
        self._timeouts = timeouts
        self._credentials = credentials
        self._on_closed = on_closed
        self._on_malformed = on_malformed
        self._connection: UpstreamConnection | None = None
        self._head: AnswerHead | None = None
        self._parser: Parser | None = None
        self._held: list[Event] = []
        self._whole: list[bytes] = []
        self._whole_bytes = 0
        self._committed = False
        self._spoken = False
        self._paused = False
        self._error_seen = False
        self._ends_with_body = watcher.complete  # before any event: a protocol with no end of its own
        self._feed: Callable[[bytes], None] = self._feed_whole
        """By what kind of answer it is."""
        # The last ordinary event around its text: a read that has the same around a text of its own is another one.
        self._usual_start = self._usual_end = self._pattern_start = self._pattern_end = UNLIKE_ANY
        self._usual_start_bytes = self._usual_end_bytes = 1
        self._pattern: tuple[bytes, bytes] | None = None
        self._preamble_timer: asyncio.TimerHandle | None = None
        self.opened: asyncio.Future[Opening] = self._loop.create_future()
        """Set at the commit point; an `UpstreamError` if the exchange failed before it."""

    # ---- dispatch's side ----

    def begin(self, connection: UpstreamConnection, request: bytes | Sequence[Piece]) -> None:
        """Send the request. The answer is then in `opened`, and what flows after it in the stream.

        Raises what the stream was interrupted with meanwhile; the caller then closes the exchange.
        """
        self._connection = connection
        self._enter_stream()
        connection.deadlines.start(self._timeouts, self, self._fail)
        connection.send(request, self)

    def _enter_stream(self) -> None:
        self._stream.flow_from(self)

    # ---- the stream's side (its source) ----

    def pause(self) -> None:
        if self._connection is not None and not self._paused:
            self._paused = True
            self._connection.deadlines.pause()
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None and self._paused:
            self._paused = False
            self._connection.deadlines.resume()
            self._connection.resume()

    def interrupt(self, error: GatewayError) -> None:
        """End the answer here: by a status before the commit point, by a terminal error after it."""
        self._fail(error)

    def close(self) -> None:
        """Drop the exchange and its connection."""
        connection = self._release()
        if connection is not None:
            connection.close()

    # ---- the connection's side (its receiver) ----

    def head_received(self, head: AnswerHead) -> None:
        self._head = head
        if 300 <= head.status < 400:
            self._fail(UpstreamInvalid("the upstream answered with a redirect, which is never followed"))
            return
        content_type = (head.get("content-type") or "").partition(";")[0].strip().lower()
        if 200 <= head.status < 300:
            if content_type == "text/event-stream":
                self._parser = Parser(self._max_event_bytes)
                self._feed = self._feed_events
            elif content_type not in ("", "application/json"):
                self._flow_bytes()

    def body_received(self, data: bytes) -> None:
        """The way of every read, one call deep while events are alike: mostly a read is one event that differs from
        the one before it in its text alone, and if nothing in that text is quoted and no line ends in it, it means the
        same. Each object that is touched here costs more than what is done with it (see docs/performance.md).
        """
        now = self._now  # a local first: CPython 3.11 looks up `self.callable()` anew each time, where it is no method
        self.last_read = now()
        if data[: self._usual_start_bytes] == self._usual_start and data[-self._usual_end_bytes :] == self._usual_end:
            text = data[self._usual_start_bytes : -self._usual_end_bytes]
            if QUOTE not in text and LF not in text and CR not in text:
                self._stream.publish([plain_event(data, data[6:-2])])
                return
        self._feed(data)

    def answer_ended(self) -> None:
        connection = self._release()
        assert connection is not None
        if self._parser is not None:
            self._see_unclosed_marker(self._parser)
            self._conclude(None if self._ends_with_body else UpstreamTruncated("the answer stopped before its end"))
        elif self._committed:
            self._stream.end()
        else:
            self._open_whole(b"".join(self._whole))

    def answer_broken(self, error: UpstreamError) -> None:
        self._release()
        self._conclude(error)

    # ---- an answer in one piece, or of bytes ----

    def _feed_whole(self, data: bytes) -> None:
        self._whole.append(data)
        self._whole_bytes += len(data)
        if self._is_error():
            if self._whole_bytes > self._max_event_bytes:
                self._fail(UpstreamInvalid("an error answer is larger than server.max_event"))
        elif self._whole_bytes > WHOLE_BYTES:
            whole, self._whole = b"".join(self._whole), []
            self._flow_bytes()
            self._feed_bytes(whole)

    def _feed_bytes(self, data: bytes) -> None:
        self._stream.publish([Event(data, data, data, b"", None)])

    def _flow_bytes(self) -> None:
        self._feed = self._feed_bytes
        self._commit()
        self._speak()

    def _open_whole(self, body: bytes) -> None:
        assert self._head is not None
        failure = answer_error(body) if self._streaming and self._head.status == 200 else None
        if failure is not None:
            self._open_failure(failure)
        elif self._is_error() or b'"error"' in body:  # some say under 200 that they failed
            redaction = Redaction(self._credentials)
            self._open(Opening(self._head.status, redaction.headers(self._head.headers), redaction.data(body)))
        else:
            self._open(Opening(self._head.status, self._head.headers, body))

    def _open_failure(self, failure: Failure) -> None:
        assert self._head is not None
        redaction = Redaction(self._credentials)
        status = failure.status or UpstreamError.status
        headers = redaction.headers(self._head.headers)
        self._open(Opening(status, headers, b"", failure=redaction.failure(failure)))

    def _open(self, opening: Opening) -> None:
        if not self.opened.done():
            self.opened.set_result(opening)

    def _is_error(self) -> bool:
        return self._head is not None and self._head.status >= 400

    # ---- an answer of events ----

    def _feed_events(self, data: bytes) -> None:
        """Any read of an event stream."""
        assert self._parser is not None
        self._usual_start = UNLIKE_ANY
        observe = self._observe
        try:
            events = self._parser.feed(data)
        except EventTooLarge as error:
            if self._spoken:
                self._pass_unusual(error.events, 0, None)
            else:
                self._await_content(error.events)
            self._fail(UpstreamInvalid("an event of the answer is larger than server.max_event"))
            return
        if not self._spoken:
            self._await_content(events)
            return
        for position, event in enumerate(events):
            sighting = observe(event)
            if sighting is not CONTENT:
                self._pass_unusual(events, position, sighting)
                return
        if events:
            self._stream.publish(events)
            if len(events) == 1:
                self._learn(self._parser)

    def _learn(self, parser: Parser) -> None:
        """What the next read will be like, if it is like this one: one ordinary event."""
        pattern = self._watcher.pattern
        if pattern is None or not parser.between_events or self._max_event_bytes < LARGEST_READ_BYTES:
            return
        if pattern is not self._pattern:
            self._pattern = pattern
            self._pattern_start, self._pattern_end = b"data: " + pattern[0], pattern[1] + b"\n\n"
            self._usual_start_bytes, self._usual_end_bytes = len(self._pattern_start), len(self._pattern_end)
        self._usual_start, self._usual_end = self._pattern_start, self._pattern_end

    def _pass_unusual(self, events: list[Event], position: int, sighting: Sighting | None) -> None:
        """Pass on events: those before `position` are content, that one is `sighting` (None: not observed yet)."""
        passed = events[:position]
        ended = False
        for event in events[position:]:
            seen = sighting or self._observe(event)
            sighting = None
            if seen is Sighting.MALFORMED:
                self._on_malformed()
                continue
            if seen is Sighting.WITHHELD:
                continue
            passed.append(self._error_event(event) if seen is Sighting.ERROR else event)
            if seen is Sighting.END:
                ended = True
                break
        if passed:
            self._stream.publish(passed)
        if ended:
            self._finish()

    def _error_event(self, event: Event) -> Event:
        """What goes on of an error event: the terminal error of this stream, so that none of ours need follow."""
        self._error_seen = True
        redaction = Redaction(self._credentials)
        if self._watcher.failure is not None:
            self._watcher.failure = redaction.failure(self._watcher.failure)
        return redaction.event(event)

    def _see_unclosed_marker(self, parser: Parser) -> None:
        """`[DONE]` without its blank line is a half event, and not passed on; the answer is whole all the same."""
        last = parser.finish()
        if last is not None and is_done(last.data):
            self._watcher.observe(last)

    def _await_content(self, events: list[Event]) -> None:
        """Before the model's first word: hold preamble back, so that a failure can still have a status or go elsewhere;
        for `PREAMBLE_S` at the most, then it goes alone."""
        for position, event in enumerate(events):
            match self._observe(event):
                case Sighting.MALFORMED:
                    self._on_malformed()
                case Sighting.WITHHELD:
                    pass
                case Sighting.PREAMBLE | Sighting.PING | Sighting.USAGE:
                    self._held.append(event)
                case Sighting.ERROR if not self._committed:
                    self._refuse()
                    return
                case sighting:
                    held, self._held = self._held, []
                    self._commit()
                    if not self._committed:
                        return  # nobody waits for it any more
                    self._speak()
                    self._pass_unusual([*held, *events[position:]], len(held), sighting)
                    return
        if self._committed:
            self._publish_held()
        elif self._held and self._preamble_timer is None:
            self._preamble_timer = self._loop.call_later(PREAMBLE_S, self._commit)

    def _refuse(self) -> None:
        """An error event before any content: it becomes the answer, with a status of its own."""
        failure = self._watcher.failure
        assert failure is not None
        self._let_finish()
        self._open_failure(failure)

    def _commit(self) -> None:
        """The commit point: from here on what comes goes downstream, and an error is told in the stream."""
        if self._committed or self.opened.done():
            return
        assert self._head is not None
        self._committed = True
        if self._preamble_timer is not None:
            self._preamble_timer.cancel()
        self._publish_held()
        self._open(Opening(self._head.status, self._head.headers, None, events=self._parser is not None))

    def _publish_held(self) -> None:
        held, self._held = self._held, []
        if held:
            self._stream.publish(held)

    def _speak(self) -> None:
        """The first content came."""
        self._spoken = True
        self._stream.first_content_at = self._now()
        if self._connection is not None:
            self._connection.flow()
            self._connection.deadlines.spoken()

    def _finish(self) -> None:
        """The final marker came: the stream is complete, whatever the connection does next."""
        self._let_finish()
        self._stream.end()

    # ---- ends ----

    def _let_finish(self) -> None:
        connection = self._release()
        if connection is not None:
            connection.finish()

    def _fail(self, error: GatewayError) -> None:
        connection = self._release()
        if connection is not None:
            connection.close()
        self._conclude(error)

    def _conclude(self, error: GatewayError | None) -> None:
        """The answer is over: tell the stream, or dispatch where nothing was committed yet.

        Once its own end was seen, or its own error event, no error counts any more.
        """
        if self._error_seen or (self._watcher.complete and not self._ends_with_body):
            error = None
        if error is None and not self._committed:
            self._commit()
        if self._committed:
            self._stream.end(error)
        elif error is not None and not self.opened.done():
            self.opened.set_exception(error)

    def _release(self) -> UpstreamConnection | None:
        """Let go of the connection, timers and the replica, once."""
        connection, self._connection = self._connection, None
        self._feed = _ignore
        self._usual_start = UNLIKE_ANY
        if self._preamble_timer is not None:
            self._preamble_timer.cancel()
        if connection is not None:
            connection.deadlines.stop()
            self._stream.last_read_at = self.last_read
            self._on_closed()
        return connection


def _ignore(data: bytes) -> None:
    """Bytes after the answer's end are nobody's."""
