"""Streams over HTTP that outlive their connection: `GET` follows one, `DELETE` stops it, and a request begins one.

What is kept for how long is `kept_streams`'; a request's way to its answer is `http`'s as that of any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from proxy.downstream.answering import STREAM_HEADERS, names
from proxy.downstream.cors import cors_headers
from proxy.downstream.edge import RECORD
from proxy.downstream.following import Following
from proxy.downstream.gate import Gate
from proxy.downstream.kept_streams import KeptStreams
from proxy.downstream.opened import Opened
from proxy.downstream.streamed import StreamedAnswer
from proxy.errors import GatewayError
from proxy.protocols import endpoints
from proxy.routing.table import Route
from proxy.streams.numbered import NumberedStream
from proxy.streams.replayed import Replayed
from proxy.streams.store import KeptStream, new_stream_id
from proxy.telemetry.record import RequestRecord
from proxy.wire.headers import Header
from proxy.wire.mux_frames import Ending

STREAMS_PATH: Final = "/v1/streams"
ASKED_FOR_BY: Final = "x-penstock-resumable"
TOLD_IN: Final = "x-penstock-stream"

Publish = Callable[[RequestRecord], None]


class StreamsApi:
    """The handlers of `/v1/streams`. `publish` gets the record of a request that went on without its client."""

    def __init__(self, gate: Gate, streams: KeptStreams, publish: Publish) -> None:
        self._gate = gate
        self._streams = streams
        self._publish = publish

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get(STREAMS_PATH + "/{id}", self.follow, allow_head=False)
        router.add_delete(STREAMS_PATH + "/{id}", self.stop)

    def asked_for(self, request: web.Request, route: Route) -> ResumableRequest | None:
        """What to keep this request's answer by, where its client or its route asks for that."""
        if route.keep_s is None and not _asks(request):
            return None
        return ResumableRequest(request[RECORD], self._streams, self._publish, route.keep_s)

    def of_stage(self, request: web.Request, route: Route) -> ResumableRequest:
        """The same for a stage, whose stream always has a name. Where nobody asks for more it ends with its client."""
        keep_s = 0.0 if route.keep_s is None and not _asks(request) else route.keep_s
        return ResumableRequest(request[RECORD], self._streams, self._publish, keep_s)

    async def follow(self, request: web.Request) -> web.StreamResponse:
        """The events behind `Last-Event-ID`, or `after`, and then those that come."""
        kept = self._find(request)
        replayed = Replayed(kept.path, kept.form, kept.stage_id)
        said = request.headers.get("Last-Event-ID") or request.query.get("after")
        after = replayed.number(said) if said else 0
        numbered = kept.numbered
        numbered.require(after)
        if replayed.is_over(numbered.ending, numbered.head, after):
            return web.Response(status=204)  # by which an EventSource knows not to come back
        streamed = self._streamed(request, kept)
        following = Following(replayed)
        try:
            streamed.begin()
            streamed.follow(following.stream, told_already)
            following.follow(numbered, after)
            self._streams.store.attached(kept)
            await streamed.finished
        finally:
            if following.leave():
                self._streams.detach(kept)
            request[RECORD].bytes_out = streamed.close()
        return streamed.response

    async def stop(self, request: web.Request) -> web.Response:
        """Stop it. Whoever follows it is told; what it said can still be had."""
        self._find(request).cancel("client")
        return web.Response(status=204)

    def _find(self, request: web.Request) -> KeptStream:
        key = self._gate.admit(request)
        record = request[RECORD]
        record.path = STREAMS_PATH  # whoever reads the log is not to follow it
        record.key = key.name if key is not None else None
        return self._streams.store.find(request.match_info["id"], record.key)

    def _streamed(self, request: web.Request, kept: KeptStream) -> StreamedAnswer:
        record = request[RECORD]
        record.transport, record.status = "sse", web.HTTPOk.status_code
        told = [*STREAM_HEADERS, *names(record, "gateway"), (TOLD_IN, kept.id)]
        return StreamedAnswer(
            request,
            web.HTTPOk.status_code,
            [*told, *cors_headers(self._gate.origins, request)],
            keepalive=endpoints.for_path(kept.path).keepalive,
            keepalive_s=kept.keepalive_s,
        )


class ResumableRequest:
    """A request whose answer is kept, if it is one of events; alone it goes on for `keep_s` (as in `KeptStream`). The
    holder's duty once it is kept: `leave`, which lets go of the answer when that is over, however long that takes."""

    def __init__(self, record: RequestRecord, streams: KeptStreams, publish: Publish, keep_s: float | None) -> None:
        self._keep_s = keep_s
        self._id = new_stream_id()
        self._record = record
        self._streams = streams
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._opened: Opened | None = None
        self._kept: KeptStream | None = None
        self._following: Following | None = None

    @property
    def header(self) -> Header:
        return TOLD_IN, self._id

    @property
    def is_kept(self) -> bool:
        return self._kept is not None

    def keep(self, opened: Opened, path: str) -> Following:
        """What the client gets of the answer, which came at the endpoint `path`."""
        self._opened = opened
        store, stage_id = self._streams.store, self._id if opened.stage_id is None else opened.stage_id
        numbered = NumberedStream(
            screen=opened.screen,
            known=opened.known,
            keeping=store.keeping(),
            conclude=self._conclude,
            on_malformed=opened.on_malformed,
        )
        self._kept = KeptStream(
            self._id,
            self._record.key,
            numbered,
            opened.form,
            stage_id,
            path,
            self._cancel,
            self._keep_s,
            opened.route.keepalive_s,
        )
        store.keep(self._kept)
        following = self._following = Following(Replayed(path, opened.form, stage_id))
        following.follow(numbered)
        numbered.listen(opened.stream)
        return following

    def leave(self) -> None:
        """The client has its answer, or has gone: then the answer goes on."""
        assert self._kept is not None
        assert self._following is not None
        alone = self._following.leave()
        if self._kept.numbered.live:
            self._record.goes_on = True
            if alone:
                self._streams.detach(self._kept)
        else:
            self._close()

    def _cancel(self, reason: str) -> None:
        assert self._kept is not None
        if self._kept.numbered.live:
            self._let_go()
            self._kept.numbered.finish(Ending.cancelled(reason))
            self._close()

    def _conclude(self, error: GatewayError | None) -> Ending:
        assert self._opened is not None
        self._loop.call_soon(self._close)  # not within the upstream's own call
        return self._opened.conclude(error)

    def _let_go(self) -> None:
        """Stop what runs upstream, and settle the record. Once."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def _close(self) -> None:
        """It is over. Once."""
        kept = self._kept
        assert kept is not None
        self._let_go()
        if kept.cancel != _over:
            kept.cancel = _over
            self._streams.ended(kept)
            if self._record.goes_on:
                self._publish(self._record)


def told_already(error: GatewayError) -> bytes:
    """The last words, where there are any, are the stream's last event."""
    return b""


def _asks(request: web.Request) -> bool:
    return request.headers.get(ASKED_FOR_BY, "").strip().lower() == "true"


def _over(reason: str) -> None:
    """There is nothing left to stop."""
