"""Fixtures that every test can ask for."""

import os

from tests.services import local_settings, mlflow_server, object_store

# Two test processes share the cores; more threads in each would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

__all__ = ["local_settings", "mlflow_server", "object_store"]
