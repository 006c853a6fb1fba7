"""What stands in the way of a start is one clear line, before anything was started."""

import shutil
import socket
from collections import namedtuple

import pytest

from infra.local import checks
from infra.local.credentials import Credentials, load_or_create
from infra.local.settings import Settings
from infra.local.stack import Stack
from merging.errors import InputError
from tests.services import free_settings


def one_line(failed) -> str:
    assert len(failed.value.problems) == 1
    assert "\n" not in str(failed.value)
    return str(failed.value)


@pytest.mark.parametrize("name", ["airflow", "mlflow", "s3"])
def test_a_port_in_use_is_named_with_the_setting_that_changes_it(tmp_path, name):
    settings = free_settings(tmp_path)
    port = getattr(settings, f"{name}_port")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InputError) as failed, Stack(settings):
        pass
    message = one_line(failed)
    assert f"port {port}" in message
    assert f"MERGEFLOW_{name.upper()}_PORT" in message
    assert not settings.logs.exists()


def test_a_missing_program_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as failed, Stack(free_settings(tmp_path / "home")):
        pass
    assert "'weed'" in one_line(failed)
    assert "make install" in one_line(failed)


def test_a_full_disk_is_named_with_what_is_needed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(100 * 10**9, 99 * 10**9, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError) as failed, Stack(free_settings(tmp_path / "home")):
        pass
    assert "1.0 GB free" in one_line(failed)
    assert "5.0 GB needed" in one_line(failed)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"s3_access_key": "x"}'])
def test_a_damaged_credentials_file_is_refused_and_kept(tmp_path, damage):
    path = tmp_path / "credentials.json"
    path.write_text(damage)
    with pytest.raises(InputError) as failed:
        load_or_create(path)
    assert str(path) in one_line(failed)
    assert path.read_text() == damage


def test_credentials_are_made_once_and_only_their_owner_can_read_them(tmp_path):
    path = tmp_path / "home" / "credentials.json"
    first = load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert load_or_create(path) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create(tmp_path / "other" / "credentials.json") != first


def test_credentials_do_not_show_their_secrets():
    credentials = Credentials()
    shown = repr(credentials)
    assert credentials.s3_secret_key not in shown
    assert credentials.airflow_password not in shown


def test_all_port_mistakes_are_reported_at_once():
    with pytest.raises(InputError) as failed:
        Settings.from_environment({"MERGEFLOW_AIRFLOW_PORT": "http", "MERGEFLOW_MLFLOW_PORT": "70000"})
    assert [problem.split(":")[0] for problem in failed.value.problems] == [
        "MERGEFLOW_AIRFLOW_PORT",
        "MERGEFLOW_MLFLOW_PORT",
    ]


@pytest.mark.parametrize("overlap", ["8333", "8340"])
def test_a_port_among_those_of_the_object_store_is_refused(overlap):
    with pytest.raises(InputError, match="8333-8340"):
        Settings.from_environment({"MERGEFLOW_MLFLOW_PORT": overlap})
