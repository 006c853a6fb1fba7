"""For a user of the registry: `models:/NAME@champion`, downloaded, is a transformers checkpoint that generates."""

import os
import uuid

import boto3
import pytest

from infra.local.environment import service_environment
from merging.digest import model_digest, model_files
from operators.hooks.mlflow import Tracking
from operators.hooks.object_store import ObjectStore


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny Llama with its tokenizer, as save_pretrained writes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<unk>", "</s>", "one", "plus", "two", "is", "three"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "checkpoint"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def test_the_champion_loads_with_its_tokenizer_and_generates(
    object_store, mlflow_server, checkpoint, tmp_path, monkeypatch
):
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    for name, value in service_environment(object_store.settings, object_store.credentials).items():
        monkeypatch.setenv(name, value)
    from mlflow.artifacts import download_artifacts
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = model_files(checkpoint)
    digest = model_digest(files)
    store = ObjectStore(boto3.client("s3"), object_store.bucket, cache=tmp_path / "cache")
    store.publish("models", digest, checkpoint, {})
    track, name = Tracking(mlflow_server), f"merge-{uuid.uuid4().hex[:8]}"
    run = track.parent_run(track.experiment(name), "run", {})
    track.set_alias(name, "champion", track.register(name, digest, store.uri("models", digest), run, {}))

    folder = download_artifacts(f"models:/{name}@champion", dst_path=str(tmp_path / "downloaded"))
    assert model_files(folder) == files
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    prompt = tokenizer("one plus two is", return_tensors="pt")
    answer = model.generate(prompt["input_ids"], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert answer.shape[1] == prompt["input_ids"].shape[1] + 3
    assert tokenizer.decode(answer[0]).startswith("one plus two is")
