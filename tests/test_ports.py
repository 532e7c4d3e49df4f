"""Ports: bound and kept without being listened on, shared by those who say so, or passed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from proxy.config.addresses import Address
from proxy.config.loader import load
from proxy.config.model import Config
from proxy.ports import CannotListen, Port, addresses, bind, open_ports

ROUTES = "routes: {m: demo://}\n"


def configuration(tmp_path: Path, text: str) -> Config:
    (tmp_path / "routes.yaml").write_text(text + ROUTES)
    return load(tmp_path / "routes.yaml", {})


@contextmanager
def listening(host: str = "127.0.0.1", *, shared: bool = False) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((host, 0))
        other.listen()
        yield other


def test_opened_ports_have_their_real_numbers_and_nobody_listens(tmp_path: Path) -> None:
    ports = open_ports(configuration(tmp_path, "server: {port: 0}\nadmin: {listen: '127.0.0.1:0'}\n"))
    assert ports.admin is not None
    for port in (ports.main, ports.admin):
        assert [each.getsockname() for each in port.sockets] == [port.address]
        assert port.address.port > 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(port.address)
    ports.close()
    assert [each.fileno() for each in (*ports.main.sockets, *ports.admin.sockets)] == [-1, -1]


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_that_somebody_listens_on_is_in_use(shared: bool, tmp_path: Path) -> None:
    """Also one that others may share: nobody joins by mistake."""
    with listening(shared=shared) as other:
        number = other.getsockname()[1]
        with pytest.raises(CannotListen) as failed:
            open_ports(configuration(tmp_path, f"server: {{port: {number}}}\n"))
    assert (failed.value.setting, failed.value.address) == ("server", ("127.0.0.1", number))
    assert isinstance(failed.value.__cause__, OSError)
    open_ports(configuration(tmp_path, f"server: {{port: {number}}}\n")).close()


def test_who_joins_shares_with_those_who_share(tmp_path: Path) -> None:
    with listening(shared=True) as other:
        number = other.getsockname()[1]
        open_ports(configuration(tmp_path, f"server: {{port: {number}}}\n"), join=True).close()
    with listening() as other, pytest.raises(CannotListen):
        open_ports(configuration(tmp_path, f"server: {{port: {other.getsockname()[1]}}}\n"), join=True)


def test_every_port_of_ours_can_be_joined(tmp_path: Path) -> None:
    first = open_ports(configuration(tmp_path, "server: {port: 0}\n"))
    for each in first.main.sockets:
        each.listen()
    second = first.again()
    assert second.main.address == first.main.address
    assert [each.getsockname() for each in second.main.sockets] == [first.main.address]
    second.close()
    first.close()


def test_if_the_operators_port_cannot_be_had_the_main_one_is_let_go(tmp_path: Path) -> None:
    with listening() as other:
        admin = f"admin: {{listen: '127.0.0.1:{other.getsockname()[1]}'}}\n"
        port = bind("server", Address("127.0.0.1", 0), join=False)
        port.close()
        with pytest.raises(CannotListen) as failed:
            open_ports(configuration(tmp_path, f"server: {{port: {port.address.port}}}\n" + admin))
    assert failed.value.setting == "admin.listen"
    bind("server", port.address, join=False).close()


def test_a_name_with_several_addresses_has_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(host: str, port: int, **_: object) -> list[object]:
        assert host == "both"
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        ]

    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", found)
        port = bind("server", Address("both", 0), join=False)
    assert [each.getsockname()[:2] for each in port.sockets] == [
        ("127.0.0.1", port.address.port),
        ("::1", port.address.port),
    ]
    port.close()


def test_a_name_that_nobody_knows_cannot_be_listened_on() -> None:
    with pytest.raises(CannotListen) as failed:
        bind("server", Address("nobody.invalid", 0), join=False)
    assert isinstance(failed.value.__cause__, socket.gaierror)


def test_passed_sockets_are_served_instead_of_binding(tmp_path: Path) -> None:
    with listening() as main, listening() as operators:
        config = configuration(tmp_path, "server: {port: 1}\nadmin: {listen: '127.0.0.1:1'}\n")
        ports = open_ports(config, [("admin", operators), ("penstock.socket", main)])
        assert ports.main == Port("server", Address("127.0.0.1", 1), (main,), passed=True)
        assert ports.admin is not None
        assert ports.admin.sockets == (operators,)
        again = ports.again()
        assert again.main.sockets == (main,)
        ports.close_kept()  # in a worker: what it was passed is its own
        assert main.fileno() > 0


def test_of_several_passed_sockets_the_most_open_one_counts() -> None:
    with listening() as inside, listening("0.0.0.0") as outside, listening("::1") as operators:
        passed = [("", inside), ("", outside), ("admin", operators)]
        assert addresses(passed) == (
            Address("0.0.0.0", outside.getsockname()[1]),
            Address("::1", operators.getsockname()[1]),
        )
    assert addresses(()) == (None, None)
