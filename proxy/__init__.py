"""Penstock: a streaming gateway for model servers. The rooms are described in docs/architecture.md."""

__version__ = "0.1.0"
