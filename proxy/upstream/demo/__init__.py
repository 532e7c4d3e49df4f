"""The built-in model behind `demo://`: a model server in memory, reached through a transport like any other."""

from proxy.upstream.demo.settings import DemoSettings
from proxy.upstream.demo.transport import DemoTransport, connect

__all__ = ["DemoSettings", "DemoTransport", "connect"]
