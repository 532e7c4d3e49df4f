"""A small tool server: what time it is somewhere, and how far two days are apart.

The gateway starts it (see routes.yaml) and speaks to it over its standard input and output.
"""

from datetime import date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from mcp.server.fastmcp import FastMCP

server = FastMCP("calendar", log_level="WARNING")


@server.tool()
def time_in(zone: str) -> str:
    """Tell the date and time in a time zone, such as Europe/Berlin."""
    try:
        return datetime.now(ZoneInfo(zone)).isoformat(" ", "minutes")
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"there is no time zone {zone!r}; they are named like Europe/Berlin") from None


@server.tool()
def days_between(first: date, second: date) -> int:
    """Count the days from one date to another; both are written like 2026-12-24."""
    return (second - first).days


if __name__ == "__main__":
    server.run()
