"""The committed models are the recorded ones, load as any Hugging Face model does, and know what they should."""

import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.demo import pair
from infra.demo.corpus import SKILLS
from infra.demo.family import FOLDER, MAX_ANSWER_TOKENS, MEMBERS, load, new_model, save, score
from infra.demo.questions import benchmark
from infra.demo.tokenizer import build_tokenizer
from merging.digest import file_sha256

RECORD = json.loads((FOLDER / "training.json").read_text())["members"]
FOLDERS = [*(FOLDER / name for name in MEMBERS), *(pair.FOLDER / name for name in pair.MEMBERS)]
every_model = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
SUBSET = 100  # questions


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@every_model
def test_the_files_are_the_recorded_ones(folder):
    record = json.loads((folder.parent / "training.json").read_text())["members"][folder.name]
    assert {path.name: file_sha256(path) for path in folder.iterdir()} == record["sha256"]


def test_saved_files_are_readable_to_everyone_and_their_digests_returned(tmp_path):
    tokenizer = build_tokenizer()
    digests = save(new_model(tokenizer, seed=0), tokenizer, tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    assert digests == {path.name: file_sha256(path) for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(digests)


@pytest.mark.parametrize("folder", [FOLDER, pair.FOLDER], ids=["family", "pair"])
def test_the_models_are_small(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 12_000_000


@every_model
def test_a_model_loads_without_a_warning_and_answers_a_chat(folder, caplog, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    chat = [{"role": "user", "content": "Compute 40+3"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=MAX_ANSWER_TOKENS)
    assert tokenizer.decode(tokens[0, prompt.input_ids.shape[1] :]).endswith("<eos>")
    assert not caplog.records
    assert "warning" not in capfd.readouterr().err.lower()


@every_model
def test_every_model_has_the_same_tokenizer(folder):
    committed = AutoTokenizer.from_pretrained(folder)
    built = build_tokenizer()
    assert committed.get_vocab() == built.get_vocab()
    assert committed.chat_template == built.chat_template
    assert committed.special_tokens_map == built.special_tokens_map
    assert committed.backend_tokenizer.to_str() == built.backend_tokenizer.to_str()


@pytest.mark.parametrize("skill", SKILLS)
def test_an_expert_beats_the_base_and_the_other_experts_at_its_own_skill(skill):
    questions = benchmark(skill)[:SUBSET]
    scores = {name: score(*load(name), questions) for name in MEMBERS}
    own = scores.pop(skill)
    assert own >= max(scores.values()) + 0.3, scores


@pytest.mark.parametrize("skill", SKILLS)
def test_the_recorded_scores_keep_the_promised_distance(skill):
    recorded = {name: RECORD[name]["scores"][skill] for name in MEMBERS}
    own = recorded.pop(skill)
    assert own >= max(recorded.values()) + 0.3


def test_adding_the_experts_deltas_to_the_base_improves_every_skill():
    base, tokenizer = load("base")
    before = {skill: score(base, tokenizer, benchmark(skill)[:SUBSET]) for skill in SKILLS}
    start = base.state_dict()
    experts = [load(skill)[0].state_dict() for skill in SKILLS]
    base.load_state_dict({k: b + 0.5 * sum(e[k] - b for e in experts) for k, b in start.items()})
    after = {skill: score(base, tokenizer, benchmark(skill)[:SUBSET]) for skill in SKILLS}
    assert all(after[skill] > before[skill] for skill in SKILLS), (before, after)
