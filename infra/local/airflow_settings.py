"""Airflow's configuration on one machine, as environment variables."""

import os

from infra.local.credentials import Credentials
from infra.local.settings import HOST, Settings

GPU_SLOTS = 2
# Imported once, by the process that all task processes are forked from: else each task pays up to 15 s for them.
PRELOAD = (
    "airflow.executors.local_executor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.providers.amazon.aws.hooks.s3",
    "torch",
    "transformers.models.llama.modeling_llama",
    "mlflow",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "matplotlib.backends.backend_agg",
    "plotly.graph_objects",
    "moocore",
    "infra.local.preloaded",
)


def airflow_settings(settings: Settings, credentials: Credentials) -> dict[str, str]:
    """AIRFLOW_HOME, Airflow's settings that differ from its defaults, and the number of threads a task may use."""
    values = {
        "core": {
            "dags_folder": settings.dags,
            "load_examples": False,
            "executor": "infra.local.executor.PreloadingExecutor",
            "parallelism": 6,
            "execution_api_server_url": f"{settings.airflow_url}/execution/",
            "fernet_key": credentials.airflow_fernet_key,
            "simple_auth_manager_users": f"{credentials.airflow_user}:admin",
            "simple_auth_manager_passwords_file": settings.home / "airflow" / "passwords.json",
        },
        "api": {
            "host": HOST,
            "port": settings.airflow_port,
            "base_url": settings.airflow_url,
            "workers": 1,
            "secret_key": credentials.airflow_session_key,
        },
        "api_auth": {"jwt_secret": credentials.airflow_jwt_secret},
        "scheduler": {
            "mp_start_method": "forkserver",
            "mp_forkserver_preload": ",".join(PRELOAD),
            "scheduler_idle_sleep_time": 0.5,
        },
        # A new or changed study file is in the UI within 15 s.
        "dag_processor": {"refresh_interval": 15, "min_file_process_interval": 15, "parsing_processes": 1},
        "workers": {
            # Also how long a worker may take to notice that its task has ended.
            "min_heartbeat_interval": 1,
            # When tasks keep all cores busy, the API server takes its time.
            "execution_api_timeout": 60,
        },
        "usage_data_collection": {"enabled": False},
    }
    threads = max(1, (os.cpu_count() or 1) // GPU_SLOTS)
    return {
        "AIRFLOW_HOME": str(settings.home / "airflow"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        **{
            f"AIRFLOW__{section.upper()}__{option.upper()}": str(value)
            for section, options in values.items()
            for option, value in options.items()
        },
    }
