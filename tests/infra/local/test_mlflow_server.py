"""The MLflow server keeps runs, and its artifacts are in the object store."""

from mlflow import MlflowClient


def test_an_artifact_logged_through_mlflow_is_in_the_bucket(object_store, mlflow_server, tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    client = MlflowClient(tracking_uri=mlflow_server)
    run = client.create_run(client.create_experiment("local-artifacts"))
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    listing = object_store.client().list_objects_v2(Bucket=object_store.bucket, Prefix="mlflow/")
    assert [
        item["Key"] for item in listing["Contents"] if item["Key"].endswith(f"{run.info.run_id}/artifacts/note.txt")
    ]
