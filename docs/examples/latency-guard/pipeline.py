"""What the robot does with a frame before the network sees it."""

import numpy as np

MEAN, STD = 0.2860, 0.3530  # of Fashion-MNIST, that the shipped network was trained on


def prepare(frame: np.ndarray) -> np.ndarray:
    """A frame of bytes [28, 28] as the network takes it, [1, 1, 28, 28]."""
    table = ((np.arange(256) / 255 - MEAN) / STD).astype(np.float32)
    return table[frame][None, None]


def prepare_slowly(frame: np.ndarray) -> np.ndarray:
    """The same, pixel by pixel: the version before."""
    values = [[(int(pixel) / 255 - MEAN) / STD for pixel in row] for row in frame]
    return np.array(values, np.float32)[None, None]
