"""A study file is validated whole: every mistake at once, each with its place and what is valid."""

import copy
import subprocess
import sys

import pytest
import yaml

from evaluation.study import Study
from merging.errors import InputError

TASK = "gsm8k"

GOOD = {
    "name": "demo",
    "base": "./base",
    "experts": {"math": "./math", "code": "org/code@main", "chat": "s3://bucket/chat"},
    "methods": ["linear", {"merge_method": "ties", "parameters": {"density": [0.2, 0.5]}}],
    "informed": ["plain", {"aim": {"omega": [0.2, 0.4]}}],
    "calibration": {"texts": "./texts.jsonl", "samples": 8, "block": 32},
    "benchmarks": {"math": {"task": TASK, "limit": 10}},
    "objectives": {"math": "maximise"},
    "promotion": {"model": "demo-merge", "require": ["math >= base + 5"]},
}


def problems_of(tmp_path, **changes):
    data = {**copy.deepcopy(GOOD), **changes}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}, sort_keys=False))
    with pytest.raises(InputError) as caught:
        Study.load(path)
    assert all(problem.startswith(str(path)) for problem in caught.value.problems)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def test_a_good_study_loads(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(GOOD, sort_keys=False))
    study = Study.load(path)
    assert study.folder == tmp_path
    assert list(study.sources) == ["base", "math", "code", "chat"]
    assert study.seed == 42


@pytest.mark.parametrize(
    ("changes", "place", "says"),
    [
        ({"bench": {}}, "bench", "did you mean benchmarks?"),
        ({"methods": ["tie"]}, "methods[0]", "unknown merge method 'tie'"),
        ({"methods": [{"merge_method": "ties", "parameters": {"density": 1.5}}]}, "methods[0]", "found 1.5"),
        ({"methods": [{"merge_method": "ties", "parameters": {"densty": 0.5}}]}, "methods[0]", "did you mean density?"),
        ({"methods": ["ties", "ties"]}, "methods", "'ties math+code+chat' comes out twice"),
        ({"informed": ["aimed"]}, "informed[0]", "valid: plain, aim, acm, acm_uniform, acm_shuffled"),
        ({"informed": [{"acm": {"t": [0.7, 0]}}]}, "informed[0].acm.t[1]", "0 makes lambda 0.5 everywhere"),
        ({"informed": [{"aim": {}, "acm": {}}]}, "informed[0]", "found aim, acm in one entry"),
        ({"informed": [{"acm": {"omega": 0.4}}]}, "informed[0].acm", "omega"),
        ({"informed": ["acm"], "calibration": None}, "calibration", "missing, but `informed` asks for ACM"),
        ({"informed": [{"aim": {"omega": 1.01}}]}, "informed[0].aim.omega[0]", "found 1.01"),
        ({"calibration": None}, "calibration", "missing, but `informed` asks for AIM"),
        ({"calibration": {"texts": "a", "dataset": "b/c"}}, "calibration", "name either `texts`"),
        ({"calibration": {"samples": 8}}, "calibration", "name either `texts`"),
        ({"combinations": [["math", "cod"]]}, "combinations", "cod: not among the experts (math, code, chat)"),
        ({"combinations": [["math", "math"]]}, "combinations", "names an expert twice"),
        ({"combinations": [["math", "code"], ["code", "math"]]}, "combinations", "stands twice"),
        ({"combinations": [[]]}, "combinations", "each with one expert or more"),
        ({"benchmarks": {"math": {"task": "gsm9k"}}}, "benchmarks", "did you mean gsm8k"),
        ({"benchmarks": {"math": {"task": TASK, "limit": 0}}}, "benchmarks.math.limit", "found 0"),
        ({"objectives": {"maths": "maximise"}, "promotion": None}, "objectives", "did you mean math?"),
        ({"objectives": {"math": "max"}}, "objectives.math", "'maximise' or 'minimise'"),
        ({"promotion": {"model": "m", "require": ["math > 3"]}}, "promotion", "write it like 'math >= base + 5'"),
        ({"promotion": {"model": "m", "require": ["math >= bass"]}}, "promotion", "bass is not a model of the study"),
        ({"promotion": {"model": "m", "require": ["code >= 5"]}}, "promotion", "code is not an objective"),
        ({"promotion": {"model": "m", "rule": "luck"}}, "promotion.rule", "'hypervolume_gain'"),
        ({"experts": {"base": "./x"}}, "experts", "'base' is the base model's own name"),
        ({"promotion": {"model": "m", "require": ["math >= math-2"]}}, "promotion", "math-2 is not a model"),
        ({"schedule": "every night"}, "schedule", "not a cron expression"),
        ({"methods": [{"merge_method": "ties", "parameters": {"density": []}}]}, "methods[0]", "an empty list"),
        (
            {"methods": ["ties", {"merge_method": "ties", "parameters": {"density": 1.0}}]},
            "methods",
            "'ties(d=1) math+code+chat' is the same merge as 'ties math+code+chat'",
        ),
        (
            {"benchmarks": {"m.2": {"task": TASK}}, "objectives": {"m.2": "maximise"}, "promotion": None},
            "benchmarks",
            "",
        ),
        (
            {"benchmarks": {"math": {"task": "mmlu_anatomy"}}, "objectives": {"math.response_tokens": "minimise"}}
            | {"promotion": None},
            "objectives",
            "generates no text",
        ),
        ({"length_reference": "maths"}, "length_reference", "did you mean math?"),
        ({"length_reference": "math"}, "length_reference", "add one, such as BENCHMARK.response_tokens"),
        ({"methods (old)": 1}, "methods (old)", "did you mean methods?"),
        ({"base": None}, "base", "missing; it is required"),
    ],
)
def test_each_mistake_is_one_line_with_its_place(tmp_path, changes, place, says):
    found = problems_of(tmp_path, **changes)
    assert len(found) == 1, found
    assert found[0].startswith(place)
    assert says in found[0]


def test_all_mistakes_come_at_once(tmp_path):
    found = problems_of(
        tmp_path, bas="x", methods=["tie"], combinations=[["math", "cod"]], objectives={"mth": "maximise"}, seed=-1
    )
    assert sorted(problem.partition(":")[0] for problem in found) == [
        "bas",
        "combinations",
        "methods[0]",
        "objectives",
        "promotion",
        "seed",
    ]


@pytest.mark.parametrize(("text", "says"), [("a: [", "not valid YAML"), ("- a", "a study is a YAML mapping")])
def test_what_is_no_study_at_all_is_said_in_one_line(tmp_path, text, says):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        Study.load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nexperts:\n  math: ./one\n  math: ./two\n")
    with pytest.raises(InputError, match="the key 'math' stands twice"):
        Study.load(path)


def test_a_requirement_may_name_a_model_with_a_number_in_its_name(tmp_path):
    promotion = {"model": "m", "require": ["math >= math-2 + 1.5", "math >= 7b"]}
    experts = {"math": "./m", "math-2": "./n", "7b": "./o"}
    study = Study.parse({**GOOD, "experts": experts, "promotion": promotion}, folder=tmp_path)
    assert study.promotion.require == promotion["require"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: cannot be read: No such file or directory"):
        Study.load(tmp_path / "nowhere.yaml")


def test_reading_a_study_imports_nothing_heavy():
    code = "import sys, evaluation.plan; print({*sys.modules} & {'torch', 'transformers', 'mlflow', 'lm_eval'})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
