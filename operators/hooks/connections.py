"""What the hooks need of an Airflow connection: where a service is, and the secret it wants."""

from merging.errors import InputError


def address(conn_id: str, *, required: bool = True) -> tuple[str | None, str | None]:
    """(URL without credentials, password) of an HTTP connection; (None, None) if it is not there and not required."""
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        if required:
            raise InputError(
                f"the Airflow connection {conn_id} does not exist: create it, or set AIRFLOW_CONN_{conn_id.upper()}"
            ) from None
        return None, None
    host = connection.host
    if host and "://" not in host:
        host = f"{connection.schema or 'http'}://{host}"
    if host and connection.port:
        host = f"{host.rstrip('/')}:{connection.port}"
    return host or None, connection.password or None
