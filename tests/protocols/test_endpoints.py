"""Which protocol is spoken at which path."""

from __future__ import annotations

import pytest

from proxy.protocols import ANTHROPIC, OPENAI, RESPONSES, STAGES, UNKNOWN, StreamProtocol, for_path
from proxy.protocols.chat_account import ChatAccount
from proxy.protocols.endpoints import account_for
from proxy.protocols.messages_account import MessagesAccount
from tests.support.answers import body_of


@pytest.mark.parametrize(
    ("path", "protocol"),
    [
        ("/v1/chat/completions", OPENAI),
        ("/v1/completions", OPENAI),
        ("/v1/responses", RESPONSES),
        ("/v1/messages", ANTHROPIC),
        ("/stream/v1/chat", STAGES),
        ("/stream/v1/toolchain", STAGES),
        ("/completion/v1/chat", STAGES),
        ("/completion/v1/nothing", STAGES),
        ("/streams", UNKNOWN),
        ("/v1/stream/chat", UNKNOWN),
        ("/v1/embeddings", UNKNOWN),
        ("/v1/audio/speech", UNKNOWN),
        ("/v1/messages/count_tokens", UNKNOWN),
        ("/v1/responses/resp_1/cancel", UNKNOWN),
        ("/v1/chat/completions/", UNKNOWN),
        ("/V1/messages", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_path_speaks_one_protocol(path: str, protocol: StreamProtocol) -> None:
    assert for_path(path) is protocol


@pytest.mark.parametrize(
    ("path", "members", "kept"),
    [
        ("/v1/chat/completions", {}, ChatAccount),
        ("/v1/completions", {"prompt": "p"}, ChatAccount),
        ("/v1/messages", {}, MessagesAccount),
        ("/v1/chat/completions", {"n": 2}, type(None)),
        ("/v1/messages", {"stream": False}, type(None)),
        ("/v1/responses", {}, type(None)),
        ("/v1/embeddings", {}, type(None)),
    ],
)
def test_some_streams_are_accounted(path: str, members: dict[str, object], kept: type) -> None:
    assert type(account_for(path, body_of(**members))) is kept
