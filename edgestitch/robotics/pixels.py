"""Pixels as cameras send them, made a network's input."""

import numpy as np
from PIL import Image

from edgestitch.data import preprocess
from edgestitch.family import Family
from edgestitch.images import COLOURS, fit

ENCODINGS = {"rgb8": 3, "bgr8": 3, "mono8": 1}
"""Channels of the encodings of sensor_msgs/Image that are understood."""


def unpack(
    data: "bytes | bytearray | memoryview | np.ndarray",
    *,
    encoding: str,
    height: int,
    width: int,
    step: int,
) -> np.ndarray:
    """The pixels of a sensor_msgs/Image, uint8 [H, W, 1] grey or [H, W, 3] red, green, blue.

    `step` is the length of a row in bytes, padding included. A view of `data` where it can be.

    Raises:
        ValueError: another encoding, no pixels, or fewer bytes than there should be.
    """
    if encoding not in ENCODINGS:
        raise ValueError(
            f"images of encoding {encoding!r} are not understood, only {', '.join(ENCODINGS)}; "
            "convert them (image_proc's debayer and rectify nodes do)"
        )
    channels = ENCODINGS[encoding]
    values = np.frombuffer(data, np.uint8)
    if height < 1 or width < 1 or step < width * channels or len(values) < step * height:
        raise ValueError(
            f"an image of {width} x {height} pixels in {encoding} takes rows of at least "
            f"{width * channels} bytes, got {len(values)} bytes in rows of {step}"
        )
    rows = values[: step * height].reshape(height, step)[:, : width * channels]
    pixels = rows.reshape(height, width, channels)
    return pixels[:, :, ::-1] if encoding == "bgr8" else pixels


def network_input(pixels: np.ndarray, family: Family) -> np.ndarray:
    """Pixels, uint8 [H, W, 1 or 3], as a family's input: float32 [1, C, H, W], normalised.

    An image of another size is scaled, and its centre taken, as calibration and evaluation do. Grey is repeated
    for a network of colours; colours are made grey (ITU-R 601) for one of grey.

    Raises:
        ValueError: not uint8, or another number of dimensions or channels.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(
            f"pixels are uint8 [H, W, 1 or 3], got {pixels.dtype} {list(pixels.shape)}"
        )
    channels, height, width = family.input_shape
    if pixels.shape != (height, width, channels):
        pixels = _fitted(pixels, channels, height, width)
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    return preprocess(images, mean=family.mean, std=family.std)


def _fitted(pixels: np.ndarray, channels: int, height: int, width: int) -> np.ndarray:
    grey = pixels.shape[2] == 1
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels))
    if image.size == (width, height):
        return np.asarray(image.convert(COLOURS[channels])).reshape(height, width, channels)
    return fit(image, (channels, height, width)).transpose(1, 2, 0)
