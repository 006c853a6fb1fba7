"""Digests say what a thing is, wherever it lies."""

import shutil

from merging.digest import calibration_digest, file_sha256, is_model_file, json_digest, model_digest, model_files


def test_known_values(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert json_digest({"b": 1, "a": [1, 2]}) == json_digest({"a": [1, 2], "b": 1})
    assert json_digest({"a": 1}) != json_digest({"a": "1"})


def test_which_files_make_a_model():
    for name in (
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
    ):
        assert is_model_file(name), name
    for name in ("README.md", ".gitattributes", "pytorch_model.bin", "original/model.safetensors", "a.pkl", "LICENSE"):
        assert not is_model_file(name), name


def test_a_models_digest_follows_its_content_alone(family, tmp_path):
    base = model_digest(model_files(family["base"]))
    shutil.copytree(family["base"], tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a card")
    assert model_digest(model_files(tmp_path / "copy")) == base
    assert model_digest(model_files(family["one"])) != base
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert model_digest(model_files(tmp_path / "copy")) != base


def test_a_calibrations_digest_depends_on_all_it_names():
    values = {calibration_digest(*a) for a in [("m", "t", 1, 2), ("n", "t", 1, 2), ("m", "u", 1, 2), ("m", "t", 2, 1)]}
    assert len(values) == 4
