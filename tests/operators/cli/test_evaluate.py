"""From calibration to scores, as a person without Airflow does it."""

import yaml


def test_a_recipe_is_checked_merged_and_evaluated(run, models, monkeypatch):
    monkeypatch.chdir(models)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "math"}],
        "aim": {"omega": 0.4, "statistics": "statistics.safetensors"},
    }
    (models / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (models / "texts.jsonl").write_text('{"text": "Compute 1+1\\n2"}\n' * 20)
    options = ["--texts", "texts.jsonl", "--samples", 20, "--block", 16]
    assert run("calibrate", "base", "statistics.safetensors", *options)[0] == 0
    assert run("check", "recipe.yaml")[0] == 0
    status, out, _ = run("merge", "recipe.yaml", "out")
    assert (status, (models / "out" / "model.safetensors").is_file()) == (0, True)
    assert out.startswith("out: ")
    status, out, _ = run("evaluate", "out", "--task", "tiny_math", "--limit", 10, "--samples", "answers")
    assert status == 0
    assert "tiny_math: " in out
    assert "10 questions" in out
    assert len((models / "answers" / "tiny_math.jsonl").read_text().splitlines()) == 10
