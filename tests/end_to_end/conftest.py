"""What the journeys share: the real model server, started once."""

from tests.support.model_server import model_server

__all__ = ["model_server"]
