"""What each protocol's answers look like: content, end, error. Pure."""

from proxy.protocols.anthropic import ANTHROPIC
from proxy.protocols.endpoints import for_path
from proxy.protocols.failure import Failure, answer_error
from proxy.protocols.openai import OPENAI
from proxy.protocols.protocol import RequestFacts, Sighting, StreamProtocol, Watcher
from proxy.protocols.responses import RESPONSES
from proxy.protocols.stages import STAGES
from proxy.protocols.unknown import UNKNOWN

__all__ = [
    "ANTHROPIC",
    "OPENAI",
    "RESPONSES",
    "STAGES",
    "UNKNOWN",
    "Failure",
    "RequestFacts",
    "Sighting",
    "StreamProtocol",
    "Watcher",
    "answer_error",
    "for_path",
]
