"""The command: `penstock serve`, `check`, `schema`. Each imports what it needs, once it is known to be the one.

Exit codes: 0 done, 1 failed, 2 bad usage or file, 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import __version__
from proxy.config.complaints import ConfigError

if TYPE_CHECKING:
    from proxy.config.model import Config
    from proxy.ports import Passed

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
LOG_LEVELS = ("debug", "info", "warning", "error")


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's own), and give its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given if _names_command(given) else ["serve", *given])
    try:
        return _COMMANDS[options.command](options)
    except ConfigError as error:
        print(*error.complaints, sep="\n", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def _serve(options: argparse.Namespace) -> int:
    load_server()
    from proxy.overseer import Shell
    from proxy.reload import Reloader, Unusable
    from proxy.systemd import NotifySocket, NotSockets, passed_sockets

    try:
        shell = Shell(NotifySocket.of(os.environ), passed_sockets(os.environ), joins=options.reuse_port)
        path = _path(options)
        reloader = Reloader(path, lambda: _usable(path, options, shell.passed))
    except (NotSockets, Unusable) as error:
        return _complain(str(error))
    level = options.log_level or os.environ.get("PENSTOCK_LOG_LEVEL", "info").lower()
    if level not in LOG_LEVELS:
        return _complain(f"PENSTOCK_LOG_LEVEL is one of {', '.join(LOG_LEVELS)}")
    if reloader.last.config.server.workers == 1:
        from proxy.alone import run
    else:
        from proxy.workers import run
    return run(reloader, shell, log_format=options.log_format, log_level=level)


def load_server() -> None:
    """Import what serves, without two things that cost a quarter of the time: aiohttp reads the system's certificates,
    twice, for a client that nothing here uses; and garbage is looked for among modules. Nor is it looked for there
    later: what was loaded stays, and workers share its pages."""
    gc.disable()
    said = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    os.environ.update(dict.fromkeys(said, os.devnull))
    try:
        importlib.import_module("proxy.config.loader")
        importlib.import_module("proxy.alone")
    finally:
        for name, value in said.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        gc.freeze()
        gc.enable()


def _check(options: argparse.Namespace) -> int:
    from proxy.config.loader import load
    from proxy.config.summary import summary

    path = _path(options)
    config = load(path, os.environ)
    print(*summary(config), sep="\n")
    if _lacks_library(config):
        return BAD_USAGE
    return _probe(config) if options.probe else DONE


def _lacks_library(config: Config) -> bool:
    """Whether routes have tools that nothing here can run; then says so."""
    complaint = _missing_library(config)
    if complaint is not None:
        _complain(complaint)
    return complaint is not None


def _missing_library(config: Config) -> str | None:
    if not any(route.tools for route in config.routes.values()):
        return None
    from proxy.toolchain.library import LibraryMissing
    from proxy.toolchain.servers import require_library

    try:
        require_library(config)
    except LibraryMissing as error:
        return str(error)
    return None


def _probe(config: Config) -> int:
    import asyncio

    from proxy.routing.table import build_table
    from proxy.upstream.probe import probe

    results = asyncio.run(probe(build_table(config).routes))
    for result in results:
        print(f"{result.route}[{result.replica}]: {result.finding}")
    return DONE if all(result.reachable for result in results) else FAILED


def _schema(options: argparse.Namespace) -> int:
    import json

    from proxy.config.schema import schema

    print(json.dumps(schema(), indent=2))
    return DONE


_COMMANDS = {"serve": _serve, "check": _check, "schema": _schema}


def _usable(path: Path, options: argparse.Namespace, passed: Passed) -> Config:
    """The file's configuration, with what flags, environment and passed sockets say instead. Raises `Unusable` where
    this process must not serve it, and `ConfigError`."""
    from proxy.config.consistency import public_without_keys
    from proxy.reload import Unusable

    config = _configured(path, options, passed)
    complaint = public_without_keys(config, config.server.host) or _missing_library(config)
    if complaint is not None:
        raise Unusable(complaint)
    return config


def _configured(path: Path, options: argparse.Namespace, passed: Passed) -> Config:
    from proxy.config.loader import load
    from proxy.ports import addresses

    config = load(path, os.environ)
    server: dict[str, object] = {}
    host = options.host or os.environ.get("PENSTOCK_HOST")
    if host:
        server["host"] = host
    port = options.port if options.port is not None else os.environ.get("PENSTOCK_PORT")
    if port is not None and port != "":
        server["port"] = _port(port, "PENSTOCK_PORT")
    if options.workers is not None:
        server["workers"] = options.workers
    main, listen = addresses(passed)
    if main is not None:
        server |= {"host": main.host, "port": main.port}
    admin: dict[str, object] = {} if listen is None else {"listen": listen}
    return config.model_copy(
        update={
            "server": config.server.model_copy(update=server),
            "admin": config.admin.model_copy(update=admin),
        }
    )


def _path(options: argparse.Namespace) -> Path:
    """`-c`, else PENSTOCK_CONFIG, else the routes.yaml of this folder, else the shipped one."""
    from proxy.config.loader import shipped

    if options.config is not None:
        return Path(options.config)
    if named := os.environ.get("PENSTOCK_CONFIG"):
        return Path(named)
    here = Path("routes.yaml")
    return here if here.is_file() else shipped()


def _port(value: object, name: str) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise SystemExit(_complain(f"{name} is a whole number from 0 to 65535"))
    return int(text)


def _complain(complaint: str) -> int:
    print(f"penstock: {complaint}", file=sys.stderr)
    return BAD_USAGE


def _names_command(arguments: list[str]) -> bool:
    return bool(arguments) and (arguments[0] in _COMMANDS or arguments[0] in ("-h", "--help", "--version"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="penstock", description="A streaming gateway for model servers.")
    parser.add_argument("--version", action="version", version=f"penstock {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument(
        "-c", "--config", metavar="routes.yaml", help="the configuration (default: the shipped one)"
    )
    serve = commands.add_parser("serve", parents=[configured], help="run the gateway (the default)")
    serve.add_argument("--host", metavar="H", help="where to listen (default: 127.0.0.1)")
    serve.add_argument("--port", metavar="P", type=_port_argument, help="0 takes a free one (default: 8080)")
    serve.add_argument("--workers", metavar="N", type=_workers_argument, help="processes sharing the port (default: 1)")
    serve.add_argument(
        "--reuse-port", action="store_true", help="join a penstock of the same user that listens on the port already"
    )
    serve.add_argument("--log-format", choices=("text", "json"), default="text")
    serve.add_argument("--log-level", choices=LOG_LEVELS)
    check = commands.add_parser("check", parents=[configured], help="read the configuration and list every problem")
    check.add_argument("--probe", action="store_true", help="also ask each replica")
    commands.add_parser("schema", help="print the JSON Schema of routes.yaml")
    return parser


def _port_argument(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError("a whole number from 0 to 65535")
    return int(text)


def _workers_argument(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1024):
        raise argparse.ArgumentTypeError("a whole number from 1 to 1024")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
