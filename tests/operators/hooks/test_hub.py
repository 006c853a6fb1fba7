from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from merging.digest import model_files
from merging.errors import InputError, TransientError
from operators.hooks import hub as hub_module
from operators.hooks.hub import Hub
from operators.hooks.sources import Sources

REPO = "org/model"
WEIGHTS = "/lfs/org/model/"


@pytest.fixture
def sources(hub_server, tmp_path):
    return Sources(tmp_path / "cache", hub=Hub(hub_server.url, token="hf_secret", attempts=3, wait=0))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


def test_pinned_commit_arrives_though_the_branch_moved(hub_server, sources, make_model, tmp_path):
    old = make_model(1)
    commit = hub_server.commit(REPO, old)
    resolved = sources.resolve(REPO, tmp_path)
    hub_server.commit(REPO, make_model(2))
    sources.fetch(resolved, tmp_path / "copy")
    assert resolved.commit == commit
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == old
    assert sources.resolve(REPO, tmp_path).digest != resolved.digest


def test_branch_and_commit_can_be_named(hub_server, sources, make_model, tmp_path):
    first = hub_server.commit(REPO, make_model(1))
    second = hub_server.commit(REPO, make_model(2), branch="refs/pr/1")
    assert sources.resolve(f"{REPO}@refs/pr/1", tmp_path).commit == second
    assert sources.resolve(f"{REPO}@{first}", tmp_path).commit == first


def test_resolve_moves_no_weights(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model(), card={"license": "apache-2.0"})
    resolved = sources.resolve(REPO, tmp_path)
    assert hub_server.downloads("model.safetensors") == []
    assert resolved.licence == "apache-2.0"


def test_preview_asks_for_the_header_only(hub_server, sources, make_model, tmp_path):
    files = make_model(size=400)
    hub_server.commit(REPO, files)
    folder = sources.preview(sources.resolve(REPO, tmp_path), tmp_path / "preview")
    (request,) = hub_server.downloads("model.safetensors")
    assert request.range == "bytes=0-99999"
    header = 8 + int.from_bytes(files["model.safetensors"][:8], "little")
    written = (folder / "model.safetensors").read_bytes()
    assert written == files["model.safetensors"][:header] + bytes(len(written) - header)
    assert len(written) == len(files["model.safetensors"])
    assert (folder / "config.json").read_bytes() == files["config.json"]


def test_preview_of_a_server_without_ranges_and_of_a_long_header(hub_server, sources, make_model, tmp_path):
    files = make_model(size=400)
    header = files["model.safetensors"][8:].split(b"}}", 1)[0] + b"}}" + b" " * 150_000
    files["model.safetensors"] = len(header).to_bytes(8, "little") + header + bytes(640_000)
    hub_server.commit(REPO, files)
    hub_server.fail(WEIGHTS, times=9, ignore_range=True)
    folder = sources.preview(sources.resolve(REPO, tmp_path), tmp_path / "preview")
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_broken_download_resumes_with_a_range(hub_server, sources, make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    files = make_model()
    hub_server.commit(REPO, files)
    resolved = sources.resolve(REPO, tmp_path)
    hub_server.fail(WEIGHTS, cut_after=5000)
    sources.fetch(resolved, tmp_path / "copy")
    first, second = hub_server.downloads("model.safetensors")
    assert (first.range, second.range) == (None, "bytes=5000-")
    assert model_files(tmp_path / "copy") == resolved.files


def test_a_later_call_goes_on_where_a_failed_one_stopped(hub_server, sources, make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub_server.commit(REPO, make_model())
    resolved = sources.resolve(REPO, tmp_path)
    hub_server.fail(WEIGHTS, cut_after=5000)
    hub_server.fail(WEIGHTS, times=99, cut_after=0)
    with pytest.raises(TransientError, match=r"org/model@\w+: model.safetensors: the connection to .* failed"):
        sources.fetch(resolved, tmp_path / "copy")
    hub_server.faults, hub_server.requests = [], []
    moved = []
    sources.fetch(resolved, tmp_path / "copy", lambda done, total, label: moved.append((done, total)))
    (request,) = hub_server.downloads("model.safetensors")
    assert request.range == "bytes=5000-"
    assert hub_server.downloads("config.json") == []
    assert model_files(tmp_path / "copy") == resolved.files
    assert moved[-1] == (resolved.size, resolved.size)
    assert max(done for done, _ in moved) == resolved.size


def test_two_that_fetch_at_once_download_once(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model())
    resolved = sources.resolve(REPO, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: sources.fetch(resolved, tmp_path / "copy"), range(2)))
    assert len(hub_server.downloads("model.safetensors")) == 1
    assert model_files(tmp_path / "copy") == resolved.files


def test_corrupt_file_is_refused_and_fetched_again(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model())
    resolved = sources.resolve(REPO, tmp_path)
    hub_server.fail(WEIGHTS, corrupt=True)
    sources.fetch(resolved, tmp_path / "copy")
    assert len(hub_server.downloads("model.safetensors")) == 2
    assert model_files(tmp_path / "copy") == resolved.files


def test_the_same_wrong_bytes_twice_are_an_error(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model())
    resolved = sources.resolve(REPO, tmp_path)
    hub_server.fail(WEIGHTS, times=9, corrupt=True)
    with pytest.raises(InputError, match="model.safetensors holds other bytes than it had when resolved"):
        sources.fetch(resolved, tmp_path / "copy")
    assert not (tmp_path / "copy" / "model.safetensors").exists()
    assert len(hub_server.downloads("model.safetensors")) == 2


@pytest.mark.parametrize("length", [1000, 100_000])
def test_a_file_of_another_length_than_listed_never_arrives(hub_server, sources, make_model, tmp_path, length):
    files = make_model()
    commit = hub_server.commit(REPO, files)
    resolved = sources.resolve(REPO, tmp_path)
    hub_server.repositories[REPO].commits[commit]["model.safetensors"] = bytes(length)
    with pytest.raises(TransientError, match="model.safetensors: .* sent a file of another length than it listed"):
        sources.fetch(resolved, tmp_path / "copy")
    hub_server.repositories[REPO].commits[commit] = files
    sources.fetch(resolved, tmp_path / "copy")
    assert model_files(tmp_path / "copy") == resolved.files


def test_corrupt_config_never_enters_a_digest(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model())
    hub_server.fail("/config.json", corrupt=True)
    with pytest.raises(TransientError, match="config.json arrived damaged"):
        sources.resolve(REPO, tmp_path)


def test_pickles_and_code_are_never_requested(hub_server, sources, make_model, tmp_path):
    extra = {"pytorch_model.bin": b"x", "modeling_evil.py": b"x", "onnx/model.safetensors": b"x"}
    hub_server.commit(REPO, make_model() | extra)
    resolved = sources.resolve(REPO, tmp_path)
    sources.fetch(resolved, tmp_path / "copy")
    asked = {request.path.rsplit("/", 1)[-1] for request in hub_server.requests}
    assert asked == {"model", "config.json", "tokenizer.json", "model.safetensors"}
    assert len(hub_server.downloads("model.safetensors")) == 1


def test_pickle_only_repository_is_refused(hub_server, sources, tmp_path):
    hub_server.commit(REPO, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(InputError, match=r"org/model: only pickle weights \(pytorch_model.bin\)"):
        sources.resolve(REPO, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/nothing", "org/nothing: no such model on http.*or it is private: check the spelling"),
        ("org/model@v9", "org/model@v9: no such revision on http.*: name a branch, tag or commit"),
        ("org/mo..del", "org/mo..del: not a hub id"),
    ],
)
def test_missing_model_or_revision(hub_server, sources, make_model, tmp_path, source, message):
    hub_server.commit(REPO, make_model())
    with pytest.raises(InputError, match=message) as error:
        sources.resolve(source, tmp_path)
    assert len(error.value.problems) == 1
    assert "\n" not in str(error.value)


def test_gated_model_needs_the_right_token(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model())
    hub_server.repositories[REPO].token = "hf_other"
    with pytest.raises(InputError, match="gated on .*: accept its terms there and set a token") as error:
        sources.resolve(REPO, tmp_path)
    assert "hf_" not in str(error.value)
    hub_server.repositories[REPO].token = "hf_secret"
    sources.fetch(sources.resolve(REPO, tmp_path), tmp_path / "copy")


def test_the_token_stays_with_the_hub(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model())
    resolved = sources.resolve(REPO, tmp_path)
    sources.preview(resolved, tmp_path / "preview")
    sources.fetch(resolved, tmp_path / "copy")
    sent = {(request.path.startswith("/lfs/"), request.authorization) for request in hub_server.requests}
    assert sent == {(False, "Bearer hf_secret"), (True, None)}


def test_forbidden_is_terminal(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model())
    hub_server.fail("/api/models", status=403)
    with pytest.raises(InputError, match=r"org/model: .* refuses access \(HTTP 403\)"):
        sources.resolve(REPO, tmp_path)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("path", ["/api/models", "/config.json", WEIGHTS])
def test_a_busy_hub_is_asked_again(hub_server, sources, make_model, tmp_path, status, path):
    hub_server.commit(REPO, make_model())
    hub_server.fail(path, times=2, status=status)
    resolved = sources.resolve(REPO, tmp_path)
    sources.fetch(resolved, tmp_path / "copy")
    assert model_files(tmp_path / "copy") == resolved.files


def test_a_hub_that_stays_busy_is_transient(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model())
    hub_server.fail("/api/models", times=99, status=503)
    with pytest.raises(TransientError, match="answered HTTP 503"):
        sources.resolve(REPO, tmp_path)


def test_an_unreachable_hub_is_transient(tmp_path):
    sources = Sources(tmp_path, hub=Hub("http://127.0.0.1:9", attempts=2, wait=0))
    with pytest.raises(TransientError, match="the connection to http://127.0.0.1:9 failed"):
        sources.resolve(REPO, tmp_path)


def test_offline_mode_is_named(sources, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        sources.resolve(REPO, tmp_path)


def test_a_listing_cannot_lead_outside_the_folder(hub_server, sources, make_model, tmp_path):
    hub_server.commit(REPO, make_model() | {"../../evil.safetensors": b"x"})
    with pytest.raises(InputError, match="'../../evil.safetensors': a file name that leads outside"):
        sources.resolve(REPO, tmp_path)


def test_the_stand_in_hub_satisfies_huggingface_hub_itself(hub_server, make_model, tmp_path):
    files = make_model()
    commit = hub_server.commit(REPO, files)
    for name, content in files.items():
        path = hf_hub_download(REPO, name, endpoint=hub_server.url, cache_dir=tmp_path, token=False)
        assert Path(path).read_bytes() == content
        assert Path(path).parent.name == commit


def test_connection_gives_endpoint_and_token(monkeypatch):
    connection = '{"conn_type": "http", "host": "https://hub.example", "password": "hf_x"}'
    monkeypatch.setenv("AIRFLOW_CONN_HUGGINGFACE_DEFAULT", connection)
    api = hub_module.from_connection().api
    assert (api.endpoint, api.token) == ("https://hub.example", "hf_x")


def test_a_data_set_is_pinned_to_its_commit(hub_server, sources):
    commit = hub_server.commit("org/texts", {"validation.jsonl": b"{}"})
    assert sources.hub.dataset_commit("org/texts", None) == commit
    with pytest.raises(InputError, match="no such revision"):
        sources.hub.dataset_commit("org/texts", "v9")
    with pytest.raises(InputError, match="org/nothing: no such"):
        sources.hub.dataset_commit("org/nothing", None)
