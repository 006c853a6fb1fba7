import json
import math
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.benchmark import Benchmark
from evaluation.lm_eval_runner import run_benchmarks
from merging.errors import InputError

# What the counting model answers: 3 -> 456789, 7 -> 89, 9 -> nothing. The last two answers here are wrong.
QUESTIONS = [("a 3", "456789"), ("b 7", "89"), ("c 8", "9"), ("d 6", "789"), ("e 5", "6"), ("f 9", "10")]

# These replace the settings of the same names in the task they are appended to.
CHOICES = """
doc_to_choice: ["4", "7"]
output_type: multiple_choice
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a local benchmark opened a connection")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_known_models_answers_are_scored_exactly(add_task, counting_model):
    add_task("counting", QUESTIONS)
    (score,) = run_benchmarks(counting_model, [Benchmark(task="counting", batch_size=4)])
    assert (score.task, score.metric, score.samples) == ("counting", "exact_match,none", 6)
    assert score.value == pytest.approx(4 / 6)
    p, n = 4 / 6, 6
    assert score.stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert score.response_tokens == pytest.approx((6 + 2 + 1 + 3 + 4 + 0) / 6)
    assert score.seconds > 0


def test_every_question_is_kept_with_its_answer(add_task, counting_model):
    add_task("counting", QUESTIONS)
    (score,) = run_benchmarks(counting_model, [Benchmark(task="counting")])
    assert [row["correct"] for row in score.rows] == [1, 1, 1, 1, 0, 0]
    assert score.rows[4] == {
        "task": "counting",
        "question": 4,
        "prompt": "e 5",
        "target": "6",
        "response": "6789",
        "response_tokens": 4,
        "correct": 0,
    }


def test_batches_do_not_change_the_score(add_task, counting_model):
    add_task("counting", [("a long question 1", "23456789"), *QUESTIONS])
    one, many = run_benchmarks(counting_model, [Benchmark(task="counting", batch_size=size) for size in (1, 7)])
    assert [row["response"] for row in one.rows] == [row["response"] for row in many.rows]


def test_each_benchmark_keeps_its_own_settings(add_task, counting_model):
    add_task("counting", QUESTIONS)
    add_task("again", QUESTIONS[:3])
    first, second, third = run_benchmarks(
        counting_model,
        [Benchmark(task="counting", limit=2), Benchmark(task="again"), Benchmark(task="counting", limit=1, fewshot=1)],
    )
    assert (first.samples, second.samples, third.samples) == (2, 3, 1)
    assert third.stderr is None
    # One example, with its answer, stands before the question.
    assert third.rows[0]["prompt"].count("\n\n") == 1
    assert third.rows[0]["prompt"].endswith("a 3")


def test_the_examples_follow_the_seed(add_task, counting_model):
    add_task("counting", QUESTIONS * 5)
    seeds = [0, 0, 1]
    scores = run_benchmarks(counting_model, [Benchmark(task="counting", fewshot=2, limit=3, seed=s) for s in seeds])
    prompts = [[row["prompt"] for row in score.rows] for score in scores]
    assert prompts[0] == prompts[1] != prompts[2]


def test_a_choice_is_scored_by_likelihood_and_has_no_length(add_task, counting_model):
    add_task("choosing", [("a 3", "0"), ("b 6", "1"), ("c 6", "0")], CHOICES)
    (score,) = run_benchmarks(counting_model, [Benchmark(task="choosing")])
    assert (score.metric, score.value, score.response_tokens) == ("acc,none", pytest.approx(2 / 3), None)
    assert [(row["target"], row["response"], row["response_tokens"]) for row in score.rows] == [
        ("4", "4", None),
        ("7", "7", None),
        ("4", "7", None),
    ]


def test_progress_counts_the_requests_of_each_task(add_task, counting_model):
    add_task("counting", QUESTIONS)
    add_task("many", QUESTIONS * 20)
    calls = []
    run_benchmarks(
        counting_model,
        [Benchmark(task="counting"), Benchmark(task="many")],
        progress=lambda done, total, label: calls.append((done, total, label)),
    )
    assert [call for call in calls if call[2] == "counting"] == [(done, 6, "counting") for done in range(1, 7)]
    many = [call for call in calls if call[2] == "many"]
    assert len(many) == 20
    assert many[-1] == (120, 120, "many")


def test_a_run_prints_nothing_and_leaves_nothing_behind(add_task, counting_model, tmp_path):
    add_task("counting", QUESTIONS)
    code = (
        "import sys, evaluation.catalogue as catalogue\n"
        "from pathlib import Path\n"
        "from evaluation.lm_eval_runner import Score, run_benchmarks\n"
        "from evaluation.benchmark import Benchmark\n"
        "catalogue.OWN_TASKS = Path(sys.argv[1])\n"
        "run_benchmarks(sys.argv[2], [Benchmark(task='counting')])\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tasks"), str(counting_model)],
        cwd=Path(__file__).parents[2],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_truncated_prompt_is_told_once(add_task, counting_model, caplog):
    add_task("long", [("x" * 60 + " 3", "456789")] * 5)
    run_benchmarks(counting_model, [Benchmark(task="long", batch_size=1)])
    assert [record.message for record in caplog.records if "truncation" in record.message.lower()] == [
        "Left truncation applied. Original sequence length was 62, truncating to last 52 tokens. "
        "Some content will be lost."
    ]


def test_all_wrong_benchmarks_are_named_before_the_model_is_read(add_task):
    add_task("counting", QUESTIONS)
    with pytest.raises(InputError) as caught:
        run_benchmarks("no_such_folder", [Benchmark(task=task) for task in ("countin", "counting", "humaneval")])
    assert len(caught.value.problems) == 2


def test_a_folder_without_a_model_is_refused(add_task, tmp_path):
    add_task("counting", QUESTIONS)
    with pytest.raises(InputError, match="there is no model here"):
        run_benchmarks(tmp_path, [Benchmark(task="counting")])


def test_a_model_with_a_missing_weight_is_refused_by_name(add_task, counting_model, tmp_path):
    from safetensors.torch import load_file, save_file

    add_task("counting", QUESTIONS)
    broken = tmp_path / "broken"
    shutil.copytree(counting_model, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="weights are missing: model.norm.weight"):
        run_benchmarks(broken, [Benchmark(task="counting")])


def test_a_truncated_model_file_is_refused(add_task, counting_model, tmp_path):
    add_task("counting", QUESTIONS)
    cut = tmp_path / "cut"
    shutil.copytree(counting_model, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut: cannot be loaded"):
        run_benchmarks(cut, [Benchmark(task="counting")])


def test_a_model_that_brings_its_own_code_is_refused(add_task, counting_model, tmp_path):
    add_task("counting", QUESTIONS)
    foreign = tmp_path / "foreign"
    shutil.copytree(counting_model, foreign)
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "own.py").write_text("raise SystemExit('this code must never run')\n")
    with pytest.raises(InputError, match="cannot be loaded"):
        run_benchmarks(foreign, [Benchmark(task="counting")])


def test_a_response_longer_than_the_models_context_is_refused(add_task, counting_model):
    path = add_task("endless", QUESTIONS)
    path.write_text(path.read_text().replace("max_gen_toks: 12", "max_gen_toks: 64"))
    with pytest.raises(InputError, match="task endless: .*max"):
        run_benchmarks(counting_model, [Benchmark(task="endless")])


def test_a_broken_line_of_questions_is_named(add_task, tasks, counting_model):
    add_task("counting", QUESTIONS)
    with (tasks / "counting.jsonl").open("a") as file:
        file.write("{broken\n")
    with pytest.raises(InputError, match=r"counting.jsonl: line 7: not JSON"):
        run_benchmarks(counting_model, [Benchmark(task="counting")])
