"""Least squares for stitching layers. Shapes: N tokens, D and E widths of front and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgestitch.stitch import LeastSquares, StitchingLayer

widths = st.integers(1, 8)
seeds = st.integers(0, 2**31)


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_numbers(seed: int, *shape: int) -> torch.Tensor:
    """Small whole numbers, whose products are exact, so that a lost rank is exactly lost."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=random).double()


def residual(problem: LeastSquares, x_nd: torch.Tensor, y_ne: torch.Tensor) -> float:
    weight_ed, bias_e = problem.solve()
    return float((x_nd @ weight_ed.T + bias_e - y_ne).square().sum())


@given(seeds, widths, widths, st.integers(0, 40))
def test_a_linear_map_is_recovered_exactly(seed, front, back, spare):
    x_nd = tokens(seed, 2 * front + 1 + spare, front)
    weight_ed, bias_e = tokens(seed + 1, back, front), tokens(seed + 2, back)
    solved = LeastSquares.over(x_nd, x_nd @ weight_ed.T + bias_e).solve()
    torch.testing.assert_close(solved, (weight_ed, bias_e), rtol=1e-6, atol=1e-6)


@given(seeds, widths, widths, st.integers(1, 40))
def test_the_residual_is_never_above_that_of_the_mean(seed, front, back, number):
    x_nd, y_ne = tokens(seed, number, front), tokens(seed + 1, number, back)
    predicting_the_mean = float((y_ne - y_ne.mean(0)).square().sum())
    assert residual(LeastSquares.over(x_nd, y_ne), x_nd, y_ne) <= predicting_the_mean + 1e-9


@given(seeds, widths, widths, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_the_sum_of_accumulators_is_that_of_all_tokens(seed, front, back, sizes):
    x_nd, y_ne = tokens(seed, sum(sizes), front), tokens(seed + 1, sum(sizes), back)
    first, *rest = map(LeastSquares.over, torch.split(x_nd, sizes), torch.split(y_ne, sizes))
    streamed = sum(rest, first)
    at_once = LeastSquares.over(x_nd, y_ne)
    torch.testing.assert_close(
        residual(streamed, x_nd, y_ne), residual(at_once, x_nd, y_ne), rtol=1e-6, atol=1e-9
    )


@given(seeds, st.integers(0, 4), widths, widths, st.integers(1, 30))
def test_of_many_solutions_the_one_of_least_norm_is_returned(seed, rank, front, back, number):
    x_nd = whole_numbers(seed, number, rank) @ whole_numbers(seed + 1, rank, front)
    y_ne = whole_numbers(seed + 2, number, back)
    solved = torch.column_stack(LeastSquares.over(x_nd, y_ne).solve())
    with_ones = torch.column_stack([x_nd, torch.ones(number)])
    expected = torch.linalg.lstsq(with_ones, y_ne, driver="gelsd").solution.T
    torch.testing.assert_close(solved, expected, rtol=1e-6, atol=1e-6)


def test_half_precision_tokens_are_solved_in_double():
    x_nd, y_ne = tokens(0, 20, 3).half(), tokens(1, 20, 2).half()
    solved = LeastSquares.over(x_nd, y_ne).solve()
    assert {part.dtype for part in solved} == {torch.float64}
    torch.testing.assert_close(solved, LeastSquares.over(x_nd.double(), y_ne.double()).solve())


def test_the_solution_fits_a_stitching_layer():
    layer = StitchingLayer(3, 2)
    weight_ed, bias_e = LeastSquares.over(tokens(0, 20, 3), tokens(1, 20, 2)).solve()
    assert (weight_ed.shape, bias_e.shape) == (layer.weight.shape, layer.bias.shape)


@pytest.mark.parametrize(
    ("x", "y"), [((5, 3), (4, 2)), ((5,), (5, 2)), ((5, 3), (5,)), ((1, 5, 3), (1, 5, 2))]
)
def test_tokens_that_do_not_pair_are_refused_naming_both_shapes(x, y):
    message = rf"needs \[N, D\] and \[N, E\], got \[{x[0]}.*\] and \[{y[0]}.*\]"
    with pytest.raises(ValueError, match=message):
        LeastSquares.over(torch.zeros(x), torch.zeros(y))
