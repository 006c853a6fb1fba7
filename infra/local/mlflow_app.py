"""`python -m infra.local.mlflow_app DATABASE ARTIFACTS HOST PORT`: MLflow's server in one process.

`mlflow server` does the same in two, of which one only waits: twice the memory and twice the time to start.
"""

import os
import sys

import uvicorn
from mlflow.server import constants

PROXIED = "mlflow-artifacts:/"  # clients send artifacts to the server, which alone knows where they are kept


def main() -> None:
    database, artifacts, host, port = sys.argv[1:]
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: PROXIED,
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    # Imported late: it reads the environment above.
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, PROXIED)
    uvicorn.run("mlflow.server.fastapi_app:app", host=host, port=int(port))


if __name__ == "__main__":
    main()
