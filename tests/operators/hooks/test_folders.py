"""Models under an S3 prefix, on the real S3 server."""

import hashlib
import json
import uuid

import pytest

from merging.digest import model_digest, model_files
from merging.errors import InputError, TransientError
from operators.hooks.folders import card_licence
from operators.hooks.object_store import MANIFEST
from operators.hooks.sources import Sources


@pytest.fixture
def s3(object_store):
    """The client, recording in `s3.read` every object it gets: (name, Range)."""
    s3 = object_store.client()
    s3.read = []

    def record(params, **_):
        s3.read.append((params["Key"].rsplit("/", 1)[-1], params.get("Range")))

    s3.meta.events.register("provide-client-params.s3.GetObject", record)
    return s3


@pytest.fixture
def sources(s3, tmp_path):
    return Sources(tmp_path / "cache", s3=s3)


@pytest.fixture
def upload(object_store, s3):
    """upload(files) -> the s3:// address of a new prefix that holds them."""

    def put(files: dict[str, bytes]) -> str:
        prefix = f"given/{uuid.uuid4().hex}"
        for name, content in files.items():
            s3.put_object(Bucket=object_store.bucket, Key=f"{prefix}/{name}", Body=content)
        return f"s3://{object_store.bucket}/{prefix}"

    return put


def manifest_of(files: dict[str, bytes]) -> bytes:
    entries = {name: {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)} for name, body in files.items()}
    return json.dumps({"files": entries}).encode()


def test_s3_and_local_copies_have_one_digest(sources, s3, upload, make_model, write_folder, tmp_path):
    files = make_model()
    folder = write_folder("local", files)
    address = upload(files | {"README.md": b"---\nlicense: mit\n---\n", "sub/model.safetensors": b"x"})
    resolved = sources.resolve(address, tmp_path)
    assert resolved.files == model_files(folder)
    assert resolved.digest == model_digest(model_files(folder))
    assert resolved.licence == "mit"
    s3.read.clear()
    assert sources.resolve(address, tmp_path) == resolved
    assert s3.read == [("README.md", "bytes=0-20")]


def test_our_own_manifest_spares_reading_the_weights(sources, s3, upload, make_model, tmp_path):
    files = make_model()
    resolved = sources.resolve(upload(files | {MANIFEST: manifest_of(files)}), tmp_path)
    assert resolved.files["model.safetensors"]["sha256"] == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert [name for name, _ in s3.read] == [MANIFEST]


@pytest.mark.parametrize("manifest", [b"[]", b"not json", b'{"files": [1]}', b'{"other": 1}'])
def test_a_strangers_manifest_is_ignored(sources, upload, make_model, write_folder, tmp_path, manifest):
    files = make_model()
    resolved = sources.resolve(upload(files | {MANIFEST: manifest}), tmp_path)
    assert resolved.files == model_files(write_folder("local", files))


def test_preview_reads_the_header_and_fetch_the_rest(sources, s3, upload, make_model, tmp_path):
    files = make_model(size=400)
    resolved = sources.resolve(upload(files), tmp_path)
    s3.read.clear()
    folder = sources.preview(resolved, tmp_path / "preview")
    assert ("model.safetensors", "bytes=0-99999") in s3.read
    header = 8 + int.from_bytes(files["model.safetensors"][:8], "little")
    written = (folder / "model.safetensors").read_bytes()
    assert written == files["model.safetensors"][:header] + bytes(len(files["model.safetensors"]) - header)
    sources.fetch(resolved, tmp_path / "copy")
    assert model_files(tmp_path / "copy") == resolved.files


def test_fetch_goes_on_after_the_bytes_it_has(sources, s3, upload, make_model, tmp_path):
    files = make_model()
    resolved = sources.resolve(upload(files), tmp_path)
    sha256 = resolved.files["model.safetensors"]["sha256"]
    (tmp_path / "copy").mkdir()
    part = tmp_path / "copy" / f".model.safetensors.{sha256[:16]}.part"
    part.write_bytes(files["model.safetensors"][:5000])
    s3.read.clear()
    sources.fetch(resolved, tmp_path / "copy")
    assert ("model.safetensors", "bytes=5000-") in s3.read
    assert model_files(tmp_path / "copy") == resolved.files


@pytest.mark.parametrize("length", [None, 10_000_000])
def test_fetch_recovers_from_useless_leftovers(sources, upload, make_model, tmp_path, length):
    files = make_model()
    resolved = sources.resolve(upload(files), tmp_path)
    (tmp_path / "copy").mkdir()
    part = f".model.safetensors.{resolved.files['model.safetensors']['sha256'][:16]}.part"
    (tmp_path / "copy" / part).write_bytes(bytes(length or len(files["model.safetensors"])))
    sources.fetch(resolved, tmp_path / "copy")
    assert model_files(tmp_path / "copy") == resolved.files
    assert not (tmp_path / "copy" / part).exists()


def test_objects_that_differ_from_their_manifest_are_refused(sources, upload, make_model, tmp_path):
    files, others = make_model(1), make_model(2)
    resolved = sources.resolve(upload(others | {MANIFEST: manifest_of(files)}), tmp_path)
    with pytest.raises(InputError, match="model.safetensors holds other bytes than it had when resolved"):
        sources.fetch(resolved, tmp_path / "copy")


def test_an_object_that_went_away_is_named(sources, s3, upload, object_store, make_model, tmp_path):
    address = upload(make_model())
    resolved = sources.resolve(address, tmp_path)
    key = address.removeprefix(f"s3://{object_store.bucket}/") + "/model.safetensors"
    s3.delete_object(Bucket=object_store.bucket, Key=key)
    with pytest.raises(InputError, match="model.safetensors is not there any more"):
        sources.fetch(resolved, tmp_path / "copy")


def test_an_empty_prefix_and_a_missing_bucket_are_named(sources, object_store, tmp_path):
    with pytest.raises(InputError, match="s3://.*/nothing: nothing is there: check the bucket and the prefix"):
        sources.resolve(f"s3://{object_store.bucket}/nothing", tmp_path)
    with pytest.raises(InputError, match="no such bucket"):
        sources.resolve("s3://no-such-bucket-here/a", tmp_path)


def test_a_wrong_credential_is_one_line_without_the_secret(object_store, tmp_path):
    wrong = object_store.client(aws_secret_access_key="not-the-secret")
    with pytest.raises(InputError, match="refused the credentials") as error:
        Sources(tmp_path, s3=wrong).resolve(f"s3://{object_store.bucket}/a", tmp_path)
    assert "not-the-secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_store_that_does_not_answer_is_transient(object_store, tmp_path):
    nobody = object_store.client(endpoint_url="http://127.0.0.1:9")
    with pytest.raises(TransientError, match="did not answer"):
        Sources(tmp_path, s3=nobody).resolve("s3://bucket/a", tmp_path)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# A", "apache-2.0"),
        ("---\nlicense: [mit, gpl-3.0]\n---\n", "mit, gpl-3.0"),
        ("---\ntags: [x]\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("---\n{broken\n---\n", None),
        ("---\ndate: 2024-13-45\n---\n", None),
        ("---\n" + "[" * 5000 + "\n---\n", None),
        ("# license: mit", None),
    ],
)
def test_the_licence_is_read_from_the_card(card, licence):
    assert card_licence(card) == licence
