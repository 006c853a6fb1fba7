import pytest

from evaluation.catalogue import known_tasks, lm_eval_tasks, read_task, task_file


def test_lm_evals_tasks_and_groups_are_found_as_lm_eval_finds_them():
    from lm_eval.tasks import TaskManager

    theirs = TaskManager()
    paths = {name: theirs.task_index[name].yaml_path for name in [*theirs.all_subtasks, *theirs.all_groups]}
    ours = lm_eval_tasks()
    assert {name: ours.get(name) for name in paths} == paths
    # One file of lm-eval's declares a group that its own index drops.
    assert set(ours) - set(paths) <= {"scrolls"}


def test_a_task_of_our_own_hides_lm_evals_of_the_same_name(add_task):
    path = add_task("gsm8k", [("1", "2")])
    assert known_tasks() == {"gsm8k": path}
    assert task_file("gsm8k") == path
    assert task_file("hellaswag").name == "hellaswag.yaml"
    assert task_file("no_such_task") is None


def test_reading_a_task_merges_its_includes_and_names_every_file_it_depends_on(tasks, add_task):
    add_task("counting", [("1", "2")], "process_docs: !function helper.prepare\n")
    (tasks / "helper.py").write_text("def prepare(docs): return docs\n")
    (tasks / "more").mkdir()
    (tasks / "more" / "variant.yaml").write_text("include: ../counting.yaml\ntask: variant\nnum_fewshot: 3\n")
    settings, files = read_task(tasks / "counting.yaml")
    assert settings["process_docs"] == "helper.prepare"
    assert [file.name for file in files] == ["counting.yaml", "helper.py", "counting.jsonl"]
    settings, files = read_task(tasks / "more" / "variant.yaml")
    assert (settings["task"], settings["num_fewshot"], settings["output_type"]) == ("variant", 3, "generate_until")
    assert [file.name for file in files[:3]] == ["variant.yaml", "counting.yaml", "helper.py"]


@pytest.mark.parametrize("name", ["gsm8k", "mmlu", "hellaswag", "ifeval", "hendrycks_math"])
def test_the_benchmarks_of_the_papers_are_known(name):
    settings, files = read_task(task_file(name))
    assert name in (settings.get("task"), settings.get("group"))
    assert all(file.is_file() for file in files)
