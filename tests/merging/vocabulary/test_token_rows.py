"""The mean row, and the gathering of rows."""

import pytest
import torch

from merging.vocabulary.token_rows import TokenRows, mean_row, row_index


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 3), (7, 5), (4099, 513), (3001,)])
def test_the_mean_row_is_exact_whatever_the_threads(shape, dtype):
    table = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    kept = table.clone()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(mean_row(table))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert torch.equal(table, kept)
    expected = torch.from_numpy(table.double().numpy().mean(0, keepdims=True))[0]
    torch.testing.assert_close(found[0], expected.to(dtype), atol=1e-12 if dtype == torch.float64 else 0, rtol=1e-12)


def test_rows_are_gathered_by_any_blocks_and_copied_only_where_they_moved():
    table = torch.arange(10.0).reshape(5, 2)
    own = {"a": 0, "b": 1, "c": 3, "gone": 2, "above": 7}
    index = row_index({"a": 0, "b": 1, "new": 2, "c": 5, "above": 6}, 8, own, len(table))
    assert index.tolist() == [0, 1, -1, -1, 4, 3, 7, -1]
    rows, mean = TokenRows(index), [4.0, 5.0]
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0], mean, mean, [8.0, 9.0], [6.0, 7.0], mean, mean])
    for first in range(8):
        for end in range(first, 9):
            assert torch.equal(rows.take("t", table, first, end), expected[first:end])
    assert rows.take("t", table, 0, 2).data_ptr() == table.data_ptr()
    assert rows.take("t", table, 0, 8).is_contiguous()
