"""The committed models are the recorded ones, load as any Hugging Face model does, and know what they should."""

import json
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.demo.corpus import SKILLS
from infra.demo.family import FOLDER, MAX_ANSWER_TOKENS, MEMBERS, load, new_model, save, score
from infra.demo.questions import benchmark
from infra.demo.tokenizer import build_tokenizer
from merging.digest import file_sha256

RECORD = json.loads((FOLDER / "training.json").read_text())["members"]
SUBSET = 100  # questions


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_files_are_the_recorded_ones(name):
    assert {path.name: file_sha256(path) for path in (FOLDER / name).iterdir()} == RECORD[name]["sha256"]


def test_saved_files_are_readable_to_everyone_and_their_digests_returned(tmp_path):
    tokenizer = build_tokenizer()
    digests = save(new_model(tokenizer, seed=0), tokenizer, tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
    assert digests == {path.name: file_sha256(path) for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(digests)


def test_the_family_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 12_000_000


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_loads_without_a_warning_and_answers_a_chat(name, caplog, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(FOLDER / name)
        tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    assert model.dtype == torch.bfloat16
    chat = [{"role": "user", "content": "Compute 40+3"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=MAX_ANSWER_TOKENS)
    assert tokenizer.decode(tokens[0, prompt.input_ids.shape[1] :]).endswith("<eos>")
    assert not caplog.records
    assert "warning" not in capfd.readouterr().err.lower()


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_has_the_family_tokenizer(name):
    committed = AutoTokenizer.from_pretrained(FOLDER / name)
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
