"""Airflow's REST API, as far as it is needed here."""

import json
import urllib.error
import urllib.request

from merging.errors import MergeflowError


class ApiError(MergeflowError):
    """Airflow answered with an error; `status` is the HTTP status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class AirflowApi:
    """Calls as one user; it logs in at the first call."""

    def __init__(self, url: str, user: str, password: str):
        self.url, self.user, self._password = url, user, password
        self._token: str | None = None
        # The services are on this machine: no proxy is asked.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, method: str, path: str, body: dict | None = None) -> dict:
        """The JSON that Airflow answers.

        Raises:
            ApiError: it answered with an error.
            OSError: it could not be reached.
        """
        if self._token is None:
            login = {"username": self.user, "password": self._password}
            self._token = self._send("POST", "/auth/token", login)["access_token"]
        return self._send(method, path, body)

    def _send(self, method: str, path: str, body: dict | None) -> dict:
        request = urllib.request.Request(self.url + path, method=method, headers={"Accept": "application/json"})
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with self._opener.open(request, timeout=30) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise ApiError(f"Airflow: {method} {path}: {error.code} {error.reason}: {detail}", error.code) from None
