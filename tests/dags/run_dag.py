"""Runs one DAG run with `dag.test` and prints what became of its tasks as JSON: python run_dag.py DAGS DAG_ID CONF."""

import json
import sys

from airflow.dag_processing.dagbag import DagBag
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import select


def main(folder: str, dag_id: str, conf: str) -> None:
    bag = DagBag(folder)
    if bag.import_errors:
        sys.exit(str(bag.import_errors))
    run = bag.dags[dag_id].test(run_conf=json.loads(conf))
    with create_session() as session:
        found = session.scalars(
            select(TaskInstance).where(TaskInstance.run_id == run.run_id, TaskInstance.dag_id == dag_id)
        )
        tasks = [
            {"task": one.task_id, "name": one.rendered_map_index, "state": str(one.state), "try": one.try_number}
            for one in found
        ]
    print("RESULT " + json.dumps({"run": run.run_id, "state": str(run.state), "tasks": tasks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
