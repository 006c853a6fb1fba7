"""What must hold before a service is started. Each check raises InputError with one line that says what to do."""

import os
import shutil
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from infra.local.settings import HOST
from merging.errors import InputError


def program(name: str) -> Path:
    """Where the program of that name is, or would be: beside this Python, else on PATH."""
    beside = Path(sys.executable).with_name(name)
    return beside if beside.exists() else Path(shutil.which(name) or beside)


def require_program(name: str) -> None:
    path = program(name)
    if not os.access(path, os.X_OK):
        raise InputError(f"the program {name!r} is neither at {path} nor on PATH; run `make install`")


def require_free_ports(ports: Iterable[int], service: str, setting: str) -> None:
    """`setting` is the environment variable with which the user can choose another port."""
    for port in ports:
        if not port_is_free(port):
            raise InputError(
                f"port {port} for {service} is in use{_owner(port)}; stop what uses it or set {setting} to another port"
            )


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the servers do it: a port whose last connections are still closing down is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def require_free_space(folder: Path, needed: int) -> None:
    """Raise unless the disk of `folder` (which need not exist) has `needed` bytes left."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB free on this disk, {needed / 1e9:.1f} GB needed; "
            "make room or set MERGEFLOW_HOME to a folder on another disk"
        )


def _owner(port: int) -> str:
    """' by NAME (process N)' where the system tells."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return ""
