"""When the file is read again, and what comes of it: a good one, a bad one, one that must not be served here."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from proxy.config.complaints import ConfigError
from proxy.config.loader import load
from proxy.config.model import Config
from proxy.reload import FileWatch, Reloader, Unusable, say_pending

ROUTES = "routes: {a: demo://}\n"
MORE = "routes: {a: demo://, b: demo://}\n"
BAD = "routes:\n  a: ftp://canary\n"


@pytest.fixture(autouse=True)
def whole_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "penstock")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "routes.yaml"
    path.write_text(ROUTES)
    return path


def reloader_of(file: Path, change: Callable[[Config], Config] = lambda read: read) -> Reloader:
    return Reloader(file, lambda: change(load(file, {})))


# ---- the watch ----


def in_place(file: Path) -> None:
    file.write_text(MORE)


def in_place_with_the_same_size(file: Path) -> None:
    file.write_text(ROUTES.replace("a", "z", 1))


def by_rename(file: Path) -> None:
    (file.parent / "new").write_text(MORE)
    os.replace(file.parent / "new", file)


def by_removal(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [in_place, in_place_with_the_same_size, by_rename, by_removal])
def test_a_change_is_noticed_once_it_has_settled(change: Callable[[Path], None], file: Path) -> None:
    watch = FileWatch(file)
    assert not watch.has_changed()
    change(file)
    assert [watch.has_changed() for _ in range(3)] == [False, True, True]
    watch.is_read()
    assert not watch.has_changed()


def test_a_file_that_is_still_being_written_is_left_alone(file: Path) -> None:
    watch = FileWatch(file)
    for number in range(5):
        file.write_text("#" * number)
        assert not watch.has_changed()
    assert watch.has_changed()


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes mounts configuration: the file is a link into a folder that is a link, which is exchanged."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "routes.yaml").write_text(ROUTES)
    os.symlink("one", tmp_path / "..data")
    os.symlink("..data/routes.yaml", tmp_path / "routes.yaml")
    watch = FileWatch(tmp_path / "routes.yaml")
    os.symlink("two", tmp_path / "..new")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    assert [watch.has_changed(), watch.has_changed()] == [False, True]


# ---- reading again ----


def test_a_good_file_is_used_and_told_in_one_line(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reloader = reloader_of(file)
    assert (list(reloader.last.config.routes), reloader.last.complaints) == (["a"], ())
    file.write_text(MORE)
    reload = reloader.reload()
    assert reload is reloader.last
    assert (list(reload.config.routes), reload.complaints, reload.needs_restart) == (["a", "b"], (), ())
    assert caplog.messages == ["configuration reloaded: routes added: b"]


def test_a_bad_file_changes_nothing_and_every_complaint_is_told(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reloader = reloader_of(file)
    before = reloader.last
    file.write_text(BAD + "rooots: 1\n")
    reload = reloader.reload()
    assert reload.config is before.config
    assert [complaint.removeprefix(str(file)) for complaint in reload.complaints] == [
        ":2: routes.a: must start with http://, https:// or demo://",
        ':3: unknown key "rooots"; did you mean "routes"?',
    ]
    [line] = caplog.records
    assert line.levelno == logging.ERROR
    assert all(complaint in line.getMessage() for complaint in reload.complaints)
    assert "canary" not in caplog.text


def test_a_file_that_is_good_again_is_taken_up(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reloader = reloader_of(file)
    file.write_text(BAD)
    reloader.reload()
    file.write_text(ROUTES)
    assert reloader.reload().complaints == ()
    assert caplog.messages[-1] == "configuration reloaded: nothing has changed"


def test_a_file_that_is_gone_is_a_bad_one(file: Path) -> None:
    reloader = reloader_of(file)
    file.unlink()
    assert reloader.reload().complaints == (f"{file}: there is no such file",)
    assert list(reloader.last.config.routes) == ["a"]


def test_what_needs_a_restart_is_kept_and_told(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reloader = reloader_of(file)
    file.write_text("server: {port: 1, drain: 1s}\n" + MORE)
    for _ in range(2):  # until the restart it is told each time
        reload = reloader.reload()
        assert reload.needs_restart == ("server.port", "server.drain")
        assert (reload.config.server.port, reload.config.server.drain_s) == (8080, 30.0)
    assert caplog.messages[1] == "these changes are taken up at the next start: server.port, server.drain"


def test_what_does_nothing_yet_is_told_when_it_comes_new(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    reloader = reloader_of(file)
    say_pending(reloader.last.config)
    strict = "routes: {a: {replicas: ['demo://'], strict: true}}\n"
    file.write_text(strict)
    for _ in range(2):
        reloader.reload()
    assert caplog.messages.count("routes.a.strict is accepted but does nothing yet") == 1


def test_doors_are_not_opened_by_a_file_that_also_moves_the_port(file: Path) -> None:
    """It would be right by itself: on a loopback address nobody needs a key. But that needs a restart."""
    public = "server: {host: 0.0.0.0}\nauth: {keys: [{name: web, key: sk-web}]}\n" + ROUTES
    file.write_text(public)
    reloader = reloader_of(file)
    file.write_text(ROUTES)
    [complaint] = reloader.reload().complaints
    assert "add auth.keys" in complaint
    assert [key.name for key in reloader.last.config.auth_keys] == ["web"]


def test_a_file_that_this_process_cannot_use_is_a_bad_one(file: Path) -> None:
    def usable(read: Config) -> Config:
        if "b" in read.routes:
            raise Unusable("not here")
        return read

    reloader = reloader_of(file, usable)
    file.write_text(MORE)
    assert reloader.reload().complaints == ("not here",)


def test_a_configuration_that_could_not_be_taken_up_is_given_up(file: Path) -> None:
    reloader = reloader_of(file)
    file.write_text(MORE)
    reloader.reload()
    reload = reloader.give_up("for a reason")
    assert (list(reload.config.routes), reload.complaints) == (["a"], ("for a reason",))


def test_nothing_to_begin_with_is_raised(file: Path) -> None:
    file.write_text(BAD)
    with pytest.raises(ConfigError):
        reloader_of(file)


def test_reading_it_is_what_the_watch_waits_for(file: Path) -> None:
    reloader = reloader_of(file)
    assert not reloader.is_due()
    file.write_text(BAD)
    assert [reloader.is_due(), reloader.is_due()] == [False, True]
    reloader.reload()
    assert not reloader.is_due()  # a bad file is not read again and again


# ---- keys ----


def test_key_files_are_read_with_the_file_and_only_then(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sk-one\n")
    file.write_text(f"auth: {{keys: [{{name: web, key_file: {secret}}}, {{name: b, key: sk-b}}]}}\n" + ROUTES)
    reloader = reloader_of(file)
    digests = [key.digest() for key in reloader.last.config.auth_keys]
    assert digests == [hashlib.sha256(key).hexdigest() for key in (b"sk-one", b"sk-b")]
    secret.write_text("sk-two\n")
    assert reloader.last.config.auth_keys[0].digest() == digests[0]
    assert reloader.reload().config.auth_keys[0].digest() == hashlib.sha256(b"sk-two").hexdigest()
    secret.unlink()
    assert "cannot be read" in reloader.reload().complaints[0]


def test_a_key_file_that_vanishes_while_it_is_read_is_a_complaint(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("sk-one")
    file.write_text(f"auth: {{keys: [{{name: web, key_file: {secret}}}]}}\n" + ROUTES)
    secrets = iter([lambda: None, secret.unlink])

    def vanishing(read: Config) -> Config:
        next(secrets)()
        return read

    reloader = reloader_of(file, vanishing)
    assert reloader.reload().complaints == ('auth.keys: the key_file of "web" cannot be read, or is empty',)


def test_what_came_of_it_travels_to_other_processes(tmp_path: Path) -> None:
    full = Path(__file__).parent / "config" / "full.yaml"
    last = Reloader(full, partial(load, full, {})).last
    assert pickle.loads(pickle.dumps(last)) == last
