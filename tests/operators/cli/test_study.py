"""`mergeflow plan`."""


def test_plan_lists_the_candidates(run, study):
    status, out, _ = run("plan", study(methods=["linear", "ties"]))
    assert status == 0
    assert "study mine: 2 candidates; 4 models on 1 benchmarks" in out
