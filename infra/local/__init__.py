"""SeaweedFS, MLflow and Airflow on one machine, on the loopback interface only."""
