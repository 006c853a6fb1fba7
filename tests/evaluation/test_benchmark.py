import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from evaluation.benchmark import Benchmark, Score, check_benchmark, score_digest


def test_a_misspelt_task_is_refused_with_the_nearest_names(add_task):
    add_task("counting", [("1", "2")])
    (problem,) = check_benchmark(Benchmark(task="countin"))
    assert problem.startswith("unknown task 'countin'; did you mean counting")
    (problem,) = check_benchmark(Benchmark(task="gsm8kk"))
    assert "gsm8k" in problem
    assert "valid: counting, and all that `lm-eval ls tasks` lists" in problem


def test_our_tasks_lm_evals_tasks_and_its_groups_are_accepted(add_task):
    add_task("counting", [("1", "2")])
    for task in ("counting", "gsm8k", "mmlu"):
        assert check_benchmark(Benchmark(task=task)) == []


def test_a_task_that_runs_generated_code_is_refused():
    (problem,) = check_benchmark(Benchmark(task="humaneval"))
    assert problem == "task humaneval runs the code that the model writes, which is not possible here yet"


def test_examples_for_a_task_that_is_defined_without_any_are_refused():
    # lm-eval itself would ignore them without a word.
    (problem,) = check_benchmark(Benchmark(task="ifeval", fewshot=3))
    assert problem == "task ifeval is defined with no examples: fewshot must be 0, found 3"


def test_a_missing_data_file_is_named(add_task, tasks):
    add_task("counting", [("1", "2")])
    (tasks / "counting.jsonl").unlink()
    (problem,) = check_benchmark(Benchmark(task="counting"))
    assert problem == f"task counting (counting.yaml): there is no data file {tasks / 'counting.jsonl'}"


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"batch_size": 0}, {"fewshot": -1}, {"few_shot": 1}])
def test_settings_out_of_range_and_unknown_ones_are_refused(wrong):
    with pytest.raises(ValidationError):
        Benchmark(task="gsm8k", **wrong)


def test_everything_a_score_depends_on_enters_its_digest(add_task, tasks):
    yaml = add_task("counting", [("1", "2"), ("3", "4")])
    benchmark = Benchmark(task="counting")
    found = [score_digest(benchmark, "model a")]
    found.append(score_digest(benchmark, "model b"))
    for change in ({"limit": 1}, {"fewshot": 1}, {"batch_size": 16}, {"seed": 1}):
        found.append(score_digest(benchmark.model_copy(update=change), "model a"))
    (tasks / "counting.jsonl").write_text(json.dumps({"question": "1", "answer": "3"}))
    found.append(score_digest(benchmark, "model a"))
    yaml.write_text(yaml.read_text().replace("max_gen_toks: 12", "max_gen_toks: 13"))
    found.append(score_digest(benchmark, "model a"))
    assert len(set(found)) == len(found)


def test_a_score_keeps_its_digest_where_only_other_tasks_or_the_place_change(add_task, tasks, monkeypatch):
    add_task("counting", [("1", "2")])
    benchmark = Benchmark(task="counting", limit=7)
    before = score_digest(benchmark, "model")
    add_task("another", [("5", "6")])
    assert score_digest(benchmark, "model") == before
    moved = tasks.rename(tasks.with_name("moved"))
    monkeypatch.setattr("evaluation.catalogue.OWN_TASKS", moved)
    assert score_digest(benchmark, "model") == before


def test_a_scores_rows_are_written_apart(tmp_path):
    row = {
        "task": "t",
        "question": 0,
        "prompt": "é?",
        "target": "ü",
        "response": "ü",
        "response_tokens": 1,
        "correct": 1.0,
    }
    score = Score(
        task="t", metric="exact_match,none", value=1, stderr=None, samples=1, response_tokens=1, seconds=0.1, rows=[row]
    )
    assert "rows" not in score.model_dump()
    score.write_samples(tmp_path / "samples.jsonl")
    assert [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()] == [row]


def test_checking_benchmarks_imports_neither_torch_nor_lm_eval():
    code = (
        "import sys\n"
        "from evaluation.benchmark import Benchmark, check_benchmark\n"
        "import evaluation.lm_eval_runner\n"
        "assert check_benchmark(Benchmark(task='gsm8k')) == []\n"
        "print([name for name in ('torch', 'lm_eval', 'transformers', 'datasets') if name in sys.modules])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
