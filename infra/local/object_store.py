"""SeaweedFS: the S3 protocol on one machine, with real credentials and data that stays."""

import json
from contextlib import suppress
from pathlib import Path

from infra.local.checks import program, require_free_ports, require_free_space, require_program
from infra.local.credentials import Credentials, write_private
from infra.local.environment import REGION, process_environment
from infra.local.process import Process, wait_until
from infra.local.settings import HOST, Settings

READY_KEY = ".ready"
# Its volumes hold 256 MB each and it opens up to fourteen of them at the first writes.
SPACE_NEEDED = 5 * 10**9


class ObjectStore:
    """One SeaweedFS server with one bucket; its data is in `<home>/s3`."""

    def __init__(self, settings: Settings, credentials: Credentials):
        self.settings, self.credentials = settings, credentials
        self.data, self.identities = settings.home / "s3", settings.home / "s3-identities.json"
        self.process = Process(
            "SeaweedFS",
            [program("weed"), *_arguments(self.data, self.identities, settings.s3_ports)],
            log=settings.logs / "seaweedfs.log",
            environment={**process_environment(settings, credentials), "GOMEMLIMIT": "200MiB"},
            directory=self.data,
            # A graceful stop waits 15 s for its own subscriptions; what it has acknowledged survives a kill.
            patience=1.0,
        )
        self.processes = [self.process]

    def check(self) -> None:
        """Raise InputError if the server cannot be started."""
        require_program("weed")
        require_free_space(self.settings.home, SPACE_NEEDED)
        require_free_ports(self.settings.s3_ports, "SeaweedFS", "MERGEFLOW_S3_PORT")

    def start(self) -> None:
        """Start the server."""
        self.check()
        write_private(self.identities, json.dumps(_identities(self.credentials)))
        self.process.start()

    def wait(self) -> None:
        """Return once the bucket exists and takes and gives back an object; StartError if it does not."""
        wait_until(self._answers, self.processes)

    def stop(self) -> None:
        self.process.stop()
        for port in self.settings.s3_ports:
            for kind in ("master-grpc", "volume-grpc", "filer-grpc", "s3-grpc", "filer", "s3"):
                Path(f"/tmp/seaweedfs-{kind}-{port}.sock").unlink(missing_ok=True)

    def client(self):
        """A boto3 S3 client that does not retry."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.settings.s3_url,
            aws_access_key_id=self.credentials.s3_access_key,
            aws_secret_access_key=self.credentials.s3_secret_key,
            region_name=REGION,
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30),
        )

    def _answers(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        client, bucket = self.client(), self.settings.bucket
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=bucket)
            # The port answers before a volume is there to write to: only an object that comes back proves it.
            client.put_object(Bucket=bucket, Key=READY_KEY, Body=b"ready")
            return client.get_object(Bucket=bucket, Key=READY_KEY)["Body"].read() == b"ready"
        except (BotoCoreError, ClientError):
            return False


def _identities(credentials: Credentials) -> dict:
    key = {"accessKey": credentials.s3_access_key, "secretKey": credentials.s3_secret_key}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"identities": [{"name": "mergeflow", "credentials": [key], "actions": actions}]}


def _arguments(data: Path, identities: Path, ports: range) -> list[str]:
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    return [
        "server",
        f"-dir={data}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        "-master.telemetry=false",
        # A lone master elects itself; had it not done so when the volume server first calls, that would wait 5 s.
        "-master.electionTimeout=500ms",
        "-master.volumeSizeLimitMB=256",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        "-volume.max=0",
        "-volume.minFreeSpace=500MiB",
        "-volume.preStopSeconds=0",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        "-s3",
        f"-s3.config={identities}",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]
