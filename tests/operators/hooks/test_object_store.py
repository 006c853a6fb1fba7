"""The bucket, against the real S3 server: complete means that the manifest is there; nothing half-written is read."""

import json
import uuid

import pytest

from merging.errors import InputError, TransientError
from operators.hooks.object_store import MANIFEST, ObjectStore


@pytest.fixture
def store(object_store, tmp_path):
    return ObjectStore(object_store.client(), object_store.bucket, cache=tmp_path / "cache")


@pytest.fixture
def digest():
    return uuid.uuid4().hex


def make_folder(path, **files):
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_what_is_published_comes_back_whole_and_verified(store, digest, tmp_path):
    folder = make_folder(tmp_path / "made", config="{}", weights="w" * 1000)
    (folder / "sub").mkdir()
    (folder / "sub" / "more").write_text("x")
    assert store.manifest("models", digest) is None
    manifest = store.publish("models", digest, folder, {"about": "test"})
    assert store.manifest("models", digest) == manifest
    assert manifest["about"] == "test"
    assert set(manifest["files"]) == {"config", "weights", "sub/more"}
    local = store.local("models", digest)
    assert {p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file()} == {*manifest["files"], MANIFEST}
    assert (local / "weights").read_text() == "w" * 1000


def test_the_first_writer_stands_unless_forced(store, digest, tmp_path):
    folder = make_folder(tmp_path / "made", score="1")
    first = store.publish("scores", digest, folder, {"by": "first"})
    assert store.publish("scores", digest, folder, {"by": "second"}) == first
    assert store.publish("scores", digest, folder, {"by": "third"}, force=True)["by"] == "third"
    assert store.manifest("scores", digest)["by"] == "third"


def test_two_writers_whose_cards_differ_do_not_mix(store, digest, tmp_path, object_store):
    first = make_folder(tmp_path / "first", card="by the first")
    second = make_folder(tmp_path / "second", card="by the second")
    store.publish("models", digest, first, {})
    store.publish("models", digest, second, {})
    elsewhere = ObjectStore(store.client, store.bucket, cache=tmp_path / "other")
    assert (elsewhere.local("models", digest) / "card").read_text() == "by the first"


def test_what_a_killed_writer_left_is_taken_over(store, digest, tmp_path):
    store.client.put_object(Bucket=store.bucket, Key=f"models/{digest}/card", Body=b"left behind")
    store.publish("models", digest, make_folder(tmp_path / "made", card="mine"), {})
    assert (store.local("models", digest) / "card").read_text() == "left behind"


def test_what_force_replaces_is_replaced_in_the_cache_too(store, digest, tmp_path):
    store.publish("calibrations", digest, make_folder(tmp_path / "old", statistics="old"), {})
    assert (store.local("calibrations", digest) / "statistics").read_text() == "old"
    store.publish("calibrations", digest, make_folder(tmp_path / "new", statistics="new"), {}, force=True)
    assert (store.local("calibrations", digest) / "statistics").read_text() == "new"


def test_a_damaged_manifest_is_named(store, digest):
    store.client.put_object(Bucket=store.bucket, Key=f"models/{digest}/{MANIFEST}", Body=b"{")
    with pytest.raises(InputError, match="is damaged"):
        store.manifest("models", digest)


def test_a_folder_without_manifest_does_not_count(store, digest):
    store.client.put_object(Bucket=store.bucket, Key=f"models/{digest}/config.json", Body=b"{}")
    assert store.manifest("models", digest) is None
    with pytest.raises(TransientError, match="not complete"):
        store.local("models", digest)


def test_altered_bytes_are_refused_and_leave_nothing_in_the_cache(store, digest, tmp_path):
    store.publish("models", digest, make_folder(tmp_path / "made", weights="good"), {})
    store.client.put_object(Bucket=store.bucket, Key=f"models/{digest}/weights", Body=b"evil")
    with pytest.raises(TransientError, match="other bytes"):
        store.local("models", digest)
    assert not (store.cache / "models" / digest).exists()
    assert not list((store.cache / "scratch").iterdir())


def test_a_manifest_cannot_write_outside_its_folder(store, digest):
    manifest = {"digest": digest, "files": {"../../escaped": {"sha256": "0" * 64, "size": 1}}}
    store.client.put_object(Bucket=store.bucket, Key=f"models/{digest}/{MANIFEST}", Body=json.dumps(manifest).encode())
    with pytest.raises(InputError, match="leads outside its folder"):
        store.local("models", digest)


def test_a_second_call_reads_the_cache(store, digest, tmp_path):
    store.publish("models", digest, make_folder(tmp_path / "made", weights="w"), {})
    first = store.local("models", digest)
    store.client.delete_object(Bucket=store.bucket, Key=f"models/{digest}/weights")
    assert store.local("models", digest) == first


@pytest.mark.parametrize("change", [{"aws_secret_access_key": "wrong-secret"}, {"aws_access_key_id": "NOBODY"}])
def test_wrong_credentials_are_one_terminal_line_without_the_secret(object_store, tmp_path, digest, change):
    store = ObjectStore(object_store.client(**change), object_store.bucket, cache=tmp_path)
    with pytest.raises(InputError, match="refused the credentials") as caught:
        store.manifest("models", digest)
    assert len(str(caught.value).splitlines()) == 1
    assert "aws_default" in str(caught.value)
    assert object_store.secret not in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


def test_a_name_that_can_be_no_bucket_is_terminal(object_store, tmp_path, digest):
    with pytest.raises(InputError, match="My Bucket"):
        ObjectStore(object_store.client(), "My Bucket", cache=tmp_path).manifest("models", digest)


def test_a_missing_bucket_is_terminal(object_store, tmp_path, digest):
    with pytest.raises(InputError, match="no such bucket"):
        ObjectStore(object_store.client(), "no-such-bucket", cache=tmp_path).manifest("models", digest)


def test_a_service_that_does_not_answer_is_transient(object_store, tmp_path, digest):
    store = ObjectStore(object_store.client(endpoint_url="http://127.0.0.1:9"), object_store.bucket, cache=tmp_path)
    with pytest.raises(TransientError, match="did not answer"):
        store.manifest("models", digest)
