"""Images: the shipped ones, Fashion-MNIST, and what a network wants done to raw pixels."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from .artifact import load_tensors, save_tensors, tensor_digest
from .errors import ArtifactError
from .shipped import shipped

if TYPE_CHECKING:
    import torch

KIND = "labelled images"
VERSION = 1

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# Means and standard deviations per channel of pixels in 0..1: of Fashion-MNIST's 60,000 training
# images for one channel, of ImageNet (as timm states them) for three.
NORMALIZATION = {
    1: ((0.2860,), (0.3530,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

Images = TypeVar("Images", np.ndarray, "torch.Tensor")


@dataclass(frozen=True)
class LabelledImages:
    """`images` uint8 [N, C, H, W], `labels` int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        return tensor_digest({"images": self.images, "labels": self.labels})


def preprocess(
    images: Images, *, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Images:
    """Raw images, uint8 [B, C, H, W], as a network's input: float32, normalised per channel.

    Takes and returns NumPy arrays or torch tensors. Without `mean` and `std` those of
    Fashion-MNIST are used for one channel and those of ImageNet for three.

    Raises:
        ValueError: not uint8, not four dimensions, or no normalisation known for the channels.
    """
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    if shape is None or "uint8" not in str(dtype) or len(shape) != 4:
        raise ValueError(
            f"preprocess takes uint8 images [B, C, H, W] with pixels 0..255, got "
            f"{type(images).__name__} of {dtype} {list(shape) if shape is not None else ''}"
        )
    if mean is None or std is None:
        if shape[1] not in NORMALIZATION:
            raise ValueError(
                f"no normalisation is known for {shape[1]} channels; give mean= and std="
            )
        mean, std = NORMALIZATION[shape[1]]
    if not len(mean) == len(std) == shape[1]:
        raise ValueError(f"{shape[1]} channels need as many values of mean and std")
    if isinstance(images, np.ndarray):
        scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        mean_c11, std_c11 = (value.reshape(-1, 1, 1) for value in scale)
        return (images.astype(np.float32) / np.float32(255) - mean_c11) / std_c11
    import torch

    mean_t, std_t = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return (images.float() / 255 - mean_t) / std_t


def fashion_mnist(split: str, folder: Path | None = None) -> LabelledImages:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 `train` or 10,000 `test` images, [N, 1, 28, 28].

    Taken from `folder` if given, else from where Debian's dataset-fashion-mnist puts it, else
    downloaded by torchvision into the user's cache.

    Raises:
        ArtifactError: there are no such files, or they are damaged.
    """
    if folder is None:
        folder = DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else _download()
    images_name, labels_name = FILES[split]
    images = _read_idx(_find(folder, images_name), dims=3)
    labels = _read_idx(_find(folder, labels_name), dims=1)
    if len(images) != len(labels):
        raise ArtifactError(f"{folder}: {len(images)} images but {len(labels)} labels of {split}")
    return LabelledImages(images[:, None], labels.astype(np.int64))


def shipped_images() -> LabelledImages:
    """The first 1,000 test images of Fashion-MNIST, which travel with the package."""
    return load_images(shipped("calibrate") / "fashion-mnist-1000.safetensors")


def toy_images(number: int, *, seed: int = 0) -> LabelledImages:
    """Noisy images [N, 1, 8, 8] of four classes: which quadrant is bright."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, number)
    images = random.integers(0, 120, (number, 1, 8, 8))
    for index, label in enumerate(labels):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[index, 0, top : top + 4, left : left + 4] += 100
    return LabelledImages(images.astype(np.uint8), labels.astype(np.int64))


def save_images(data: LabelledImages, path: Path, source: str) -> None:
    tensors = {"images": data.images, "labels": data.labels.astype(np.uint8)}
    save_tensors(KIND, VERSION, {"source": source}, tensors, path)


def load_images(path: Path) -> LabelledImages:
    """The labelled images that `save_images` wrote."""
    _, tensors = load_tensors(KIND, VERSION, path)
    return LabelledImages(tensors["images"], tensors["labels"].astype(np.int64))


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise ArtifactError(f"{folder} has no {name}.gz and no {name}; {_WAYS}")


_WAYS = (
    "Fashion-MNIST is taken from --data DIR (a folder with the four IDX files, packed or not), "
    f"else from {DEBIAN_FOLDER} (Debian: apt-get install dataset-fashion-mnist), "
    "else downloaded by torchvision (pip install 'edgestitch[data]')"
)


def _download() -> Path:
    from platformdirs import user_cache_path

    root = user_cache_path("edgestitch")
    try:
        from torchvision.datasets import FashionMNIST

        for train in (True, False):
            FashionMNIST(str(root), train=train, download=True)
    except (ImportError, RuntimeError, OSError) as error:
        raise ArtifactError(
            f"Fashion-MNIST is not here and cannot be downloaded ({error}); {_WAYS}"
        ) from error
    return root / "FashionMNIST" / "raw"


def _read_idx(path: Path, dims: int) -> np.ndarray:
    """The unsigned bytes of an IDX file: magic 0x0000 08 dims, sizes big-endian, then data."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ArtifactError(f"cannot read {path}: {error}; {_WAYS}") from error
    header = 4 + 4 * dims
    if raw[:4] != bytes((0, 0, 8, dims)) or len(raw) < header:
        raise ArtifactError(f"{path} is no IDX file of bytes in {dims} dimensions; {_WAYS}")
    shape = struct.unpack(f">{dims}I", raw[4:header])
    if len(raw) != header + int(np.prod(shape)):
        raise ArtifactError(f"{path} says {shape} but holds {len(raw) - header} bytes; {_WAYS}")
    # A bytearray, because torch warns of arrays that cannot be written.
    return np.frombuffer(bytearray(raw), np.uint8, offset=header).reshape(shape)
