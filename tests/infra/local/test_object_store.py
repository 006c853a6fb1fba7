"""The object store is real: it tells good credentials from bad, writes once if asked to, and keeps its data."""

import pytest
from botocore.exceptions import ClientError

from infra.local.credentials import load_or_create
from infra.local.object_store import ObjectStore
from tests.services import free_settings


def test_good_credentials_write_and_read_back(object_store):
    s3 = object_store.client()
    s3.put_object(Bucket=object_store.bucket, Key="local/hello", Body=b"some bytes")
    assert s3.get_object(Bucket=object_store.bucket, Key="local/hello")["Body"].read() == b"some bytes"


@pytest.mark.parametrize("change", [{"aws_access_key_id": "nobody"}, {"aws_secret_access_key": "wrong"}])
def test_wrong_credentials_are_refused(object_store, change):
    s3 = object_store.client(**change)
    with pytest.raises(ClientError) as refused:
        s3.put_object(Bucket=object_store.bucket, Key="local/forbidden", Body=b"x")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    listing = object_store.client().list_objects_v2(Bucket=object_store.bucket, Prefix="local/forbidden")
    assert listing["KeyCount"] == 0


def test_if_none_match_writes_once(object_store):
    s3 = object_store.client()
    s3.put_object(Bucket=object_store.bucket, Key="local/once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        s3.put_object(Bucket=object_store.bucket, Key="local/once", Body=b"second", IfNoneMatch="*")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert s3.get_object(Bucket=object_store.bucket, Key="local/once")["Body"].read() == b"first"


def test_data_survives_a_restart_on_other_ports(tmp_path):
    body = bytes(range(256)) * 40_000
    for expected in (None, body):
        settings = free_settings(tmp_path)
        store = ObjectStore(settings, load_or_create(settings.credentials_file))
        try:
            store.start()
            store.wait()
            s3 = store.client()
            if expected is None:
                s3.put_object(Bucket=settings.bucket, Key="kept", Body=body)
            else:
                assert s3.get_object(Bucket=settings.bucket, Key="kept")["Body"].read() == expected
        finally:
            store.stop()
