"""Stitching layers, and the linear map of least squares that they start from.

Shapes: N tokens, D width of the front anchor, E width of the back anchor.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

Layout = Literal["tokens", "nhwc", "nchw"]
"""What passes between blocks: [B, T, D], [B, H, W, D] or [B, D, H, W]."""


class StitchingLayer(nn.Linear):
    """The affine map from the features of one anchor to those of another.

    One matrix over channels, [..., D] to [..., E]; where features are [B, D, H, W] it is applied as
    the 1x1 convolution that it is, and where they go on in another order of dimensions it turns
    them.
    """

    def __init__(
        self, width: int, back_width: int, layout: Layout = "tokens", back_layout: Layout = "tokens"
    ) -> None:
        super().__init__(width, back_width)
        self.layouts = (layout, back_layout)

    def forward(self, features: Tensor) -> Tensor:
        layout, back_layout = self.layouts
        if layout == "nchw":
            mapped = conv2d(features, self.weight[:, :, None, None], self.bias)
            return mapped.permute(0, 2, 3, 1) if back_layout == "nhwc" else mapped
        mapped = super().forward(features)
        return mapped.permute(0, 3, 1, 2) if back_layout == "nchw" else mapped


def rows(features: Tensor, layout: Layout) -> Tensor:
    """Features as [N, D]: one row for each place of each image."""
    if layout == "nchw":
        features = features.permute(0, 2, 3, 1)
    return features.flatten(0, -2)


class LeastSquares:
    """Accumulates tokens, then solves for the affine map that takes `x` closest to `y`.

    The initialisation of stitching layers of Pan et al. 2023 (section 3.2), from the normal
    equations in double precision: exact for any number of tokens, in memory for (D + 1)^2 numbers.
    Two accumulators add up to that of both token sets, which is the joint problem of two stitches
    that share a layer.
    """

    def __init__(self, gram: Tensor, cross: Tensor) -> None:
        self._gram = gram
        self._cross = cross

    @classmethod
    def over(cls, x_nd: Tensor, y_ne: Tensor) -> "LeastSquares":
        """The problem of one set of tokens.

        Raises:
            ValueError: `x_nd` and `y_ne` hold different numbers of tokens.
        """
        if x_nd.ndim != 2 or y_ne.ndim != 2 or len(x_nd) != len(y_ne):
            raise ValueError(
                f"least squares needs [N, D] and [N, E], got {list(x_nd.shape)} and {list(y_ne.shape)}"
            )
        ones = x_nd.new_ones(len(x_nd), 1)
        x = torch.cat([x_nd, ones], dim=1).double()
        return cls(x.T @ x, x.T @ y_ne.double())

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """The sums that make up the problem."""
        return self._gram, self._cross

    def __add__(self, other: "LeastSquares") -> "LeastSquares":
        return LeastSquares(self._gram + other._gram, self._cross + other._cross)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weight [E, D] and bias [E] in double precision; of many solutions the one of least norm."""
        # The normal equations square the condition number: directions whose eigenvalue is below
        # the rounding of the largest carry noise only.
        cutoff = 8 * self._gram.shape[0] * torch.finfo(torch.float64).eps
        solution = torch.linalg.pinv(self._gram, rtol=cutoff, hermitian=True) @ self._cross
        return solution[:-1].T.contiguous(), solution[-1].contiguous()
