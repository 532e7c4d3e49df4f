"""Formats on the wire: bytes to events and frames, and back. Pure."""
