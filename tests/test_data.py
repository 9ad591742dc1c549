"""Images on disk and what a network wants done to raw pixels."""

import gzip
import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgestitch.artifact import save_tensors
from edgestitch.data import (
    FILES,
    LabelledImages,
    fashion_mnist,
    load_images,
    preprocess,
    save_images,
)
from edgestitch.errors import ArtifactError
from edgestitch.evaluate import evaluate

WAYS = r"--data DIR .*/usr/share/datasets/fashion-mnist .* downloaded by torchvision"


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- preprocessing ---------------------------------------------------------------------------


@given(st.sampled_from([1, 3]), st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))
def test_numpy_and_torch_are_preprocessed_alike(channels, batch, height, width):
    images = pixels(batch, channels, height, width)
    ours = preprocess(images)
    assert ours.dtype == np.float32
    torchs = preprocess(torch.from_numpy(images))
    assert torchs.dtype == torch.float32
    np.testing.assert_array_equal(torchs.numpy(), ours)


def test_pixels_are_scaled_to_one_and_normalised_per_channel():
    images = np.array([0, 255], np.uint8).reshape(1, 2, 1, 1)
    result = preprocess(images, mean=(0.5, 0.25), std=(0.5, 0.25))
    assert result.reshape(-1).tolist() == [-1.0, 3.0]


def test_preprocessing_leaves_the_pixels_alone():
    images = pixels(2, 3, 4, 4)
    before = images.copy()
    preprocess(images)
    assert np.array_equal(images, before)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((1, 3, 2, 2), np.float32), r"ndarray of float32 \[1, 3, 2, 2\]"),
        (np.zeros((3, 2, 2), np.uint8), r"ndarray of uint8 \[3, 2, 2\]"),
        (torch.zeros(1, 3, 2, 2), r"Tensor of torch.float32 \[1, 3, 2, 2\]"),
        (torch.zeros(3, 2, 2, dtype=torch.uint8), r"Tensor of torch.uint8 \[3, 2, 2\]"),
        ([[0]], "list"),
    ],
)
def test_what_are_no_raw_images_is_refused_saying_what_was_found(images, found):
    with pytest.raises(ValueError, match=rf"takes uint8 images \[B, C, H, W\] .*, got {found}"):
        preprocess(images)


def test_five_channels_need_a_normalisation():
    with pytest.raises(ValueError, match="no normalisation is known for 5 channels; give mean="):
        preprocess(pixels(1, 5, 2, 2))


def test_a_normalisation_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="3 channels need as many values of mean and std"):
        preprocess(pixels(1, 3, 2, 2), mean=(0.5,), std=(0.5,))


# --- IDX files -------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


IMAGES, LABELS = pixels(6, 28, 28), pixels(6, seed=1) % 10


@pytest.fixture
def folder(tmp_path):
    """The four files of Fashion-MNIST with six images each: training packed, test not."""
    for name, array in zip(FILES["train"], (IMAGES, LABELS), strict=True):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    for name, array in zip(FILES["test"], (IMAGES, LABELS), strict=True):
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_idx_files_are_read_packed_and_not(folder, split):
    data = fashion_mnist(split, folder)
    assert np.array_equal(data.images, IMAGES[:, None])
    assert np.array_equal(data.labels, LABELS)
    assert data.images.dtype == np.uint8
    assert data.labels.dtype == np.int64


def test_images_that_were_read_can_be_made_tensors_without_a_warning(folder):
    data = fashion_mnist("test", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.from_numpy(data.images).shape == (6, 1, 28, 28)


def test_a_folder_without_files_is_refused_naming_all_ways(tmp_path):
    message = rf"has no train-images-idx3-ubyte\.gz and no train-images-idx3-ubyte; .*{WAYS}"
    with pytest.raises(ArtifactError, match=message):
        fashion_mnist("train", tmp_path)


def cut_short(packed):
    return packed[:-10]


def other_magic(_):
    return gzip.compress(idx(LABELS))


def shorter_data(_):
    return gzip.compress(idx(IMAGES)[:-1])


def header_alone(_):
    return gzip.compress(idx(IMAGES)[:10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "cannot read .*: Compressed file ended"),
        (lambda packed: b"not packed" + packed, "cannot read .*: Not a gzipped file"),
        (lambda packed: packed[:40] + b"\xff" * 9 + packed[49:], "cannot read .*: "),
        (other_magic, "is no IDX file of bytes in 3 dimensions"),
        (header_alone, "is no IDX file of bytes in 3 dimensions"),
        (shorter_data, r"says \(6, 28, 28\) but holds 4703 bytes"),
        (lambda packed: gzip.compress(idx(IMAGES) + b"\0"), "but holds 4705 bytes"),
    ],
    ids=range(7),
)
def test_a_damaged_file_is_refused_by_name(folder, damage, message):
    path = folder / f"{FILES['train'][0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=rf"(?=.*train-images-idx3-ubyte\.gz).*{message}"):
        fashion_mnist("train", folder)


def test_images_without_their_labels_are_refused(folder):
    (folder / FILES["test"][1]).write_bytes(idx(LABELS[:5]))
    with pytest.raises(ArtifactError, match="6 images but 5 labels of test"):
        fashion_mnist("test", folder)


# --- labelled images -------------------------------------------------------------------------


def test_saved_images_load_equal(toy_images, tmp_path):
    save_images(toy_images, tmp_path / "images.safetensors", source="made up")
    loaded = load_images(tmp_path / "images.safetensors")
    assert loaded.digest == toy_images.digest
    assert len(loaded) == len(toy_images) == 64


def test_loaded_images_are_evaluated_without_a_warning(toy_images, toy_network, tmp_path):
    save_images(toy_images, tmp_path / "images.safetensors", source="made up")
    loaded = load_images(tmp_path / "images.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(toy_network, loaded) == evaluate(toy_network, toy_images)


def test_other_tensors_are_no_images(tmp_path):
    save_tensors("weights", 1, {}, {"a": np.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ArtifactError, match="holds 'weights', but 'labelled images' was asked for"):
        load_images(tmp_path / "weights.safetensors")


def test_the_digest_covers_images_and_labels(toy_images):
    other_images = LabelledImages(255 - toy_images.images, toy_images.labels)
    other_labels = LabelledImages(toy_images.images, 3 - toy_images.labels)
    assert len({data.digest for data in (toy_images, other_images, other_labels)}) == 3
