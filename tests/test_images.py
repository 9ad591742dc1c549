"""Images read from folders and videos: the same tensors however they are asked for."""

import io
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

import av
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from edgestitch import images, load_accuracy
from edgestitch.cli import cli
from edgestitch.data import LabelledImages, toy_images
from edgestitch.errors import ArtifactError
from edgestitch.evaluate import evaluate
from edgestitch.images import (
    ArraySource,
    FolderSource,
    Selection,
    Shape,
    Skipped,
    Source,
    VideoSource,
    batches,
    broken_rows,
    evaluation_images,
    held_out,
    open_source,
    random_resized_crop,
)
from edgestitch.network import build_network, save_network
from edgestitch.recipe import load_family

SHAPE = (3, 16, 16)


def picture(seed: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """Coloured noise with a shape on it."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).ellipse((2, 2, 9 + seed % 7, 12), fill=(seed % 256, 80, 200))
    return image.convert(mode)


def encoded(seed: int, size: tuple[int, int] = (24, 20)) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "JPEG")
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Twelve images of several formats at two depths, and what are none."""
    folder = tmp_path_factory.mktemp("flat")
    for index in range(8):
        put(folder / f"{index}.JPEG", encoded(index, size=(20 + index, 30 - index)))
    for index, suffix in enumerate((".png", ".bmp", ".webp", ".tif"), 8):
        (folder / "deeper" / "still").mkdir(parents=True, exist_ok=True)
        picture(index).save(folder / "deeper" / "still" / f"{index}{suffix}")
    put(folder / "notes.txt", b"no image")
    put(folder / ".hidden.jpg", encoded(99))
    put(folder / ".thumbnails" / "a.jpg", encoded(99))
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Nine images: the first two, the fifth and the last two are broken, each in its own way."""
    folder = tmp_path_factory.mktemp("damaged")
    for index in range(9):
        put(folder / f"{index}.jpg", encoded(index, size=(64, 64)))
    (folder / "0.jpg").write_bytes(b"")
    (folder / "1.jpg").write_bytes(b"a text that is called an image")
    (folder / "4.jpg").write_bytes(encoded(4, size=(64, 64))[:900])
    picture(7).convert("I;16").save(folder / "7.png")
    (folder / "7.jpg").unlink()
    (folder / "8.jpg").unlink()
    (folder / "8.jpg").symlink_to(folder / "nowhere.jpg")
    return folder


DAMAGE = [
    (0, "is empty"),
    (1, "is no image"),
    (4, "image file is truncated"),
    (7, "8 bits"),
    (8, "is no file"),
]


@pytest.fixture
def classes(tmp_path):
    """Three class folders with 3, 2 and 4 images."""
    for name, number in {"cat": 3, "ant": 2, "dog": 4}.items():
        for index in range(number):
            put(tmp_path / "classes" / name / "by day" / f"{index}.jpg", encoded(index))
    return tmp_path / "classes"


def record(path: Path, codec: str, number: int = 40) -> Path:
    """A video of grey frames, each brighter than the one before."""
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=25))
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(number):
            pixels = np.full((48, 64, 3), 6 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


VIDEOS = {"film.mp4": "mpeg4", "film.avi": "mjpeg", "film.mkv": "mpeg4"}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return {name: record(folder / name, codec) for name, codec in VIDEOS.items()}


def all_of(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    return source.load(range(len(source)))


@pytest.fixture(scope="module", params=["array", "flat", "damaged", "film.mp4"])
def source(request, flat, damaged, films):
    if request.param == "array":
        return ArraySource(toy_images(12))
    if request.param == "film.mp4":
        return VideoSource(films["film.mp4"], SHAPE, every=3)
    return FolderSource(flat if request.param == "flat" else damaged, SHAPE, labelled=False)


# --- laws of every source ----------------------------------------------------------------------


@given(st.data())
def test_a_row_is_the_same_image_wherever_it_is_asked_for(source, data):
    rows = data.draw(st.lists(st.integers(0, len(source) - 1), max_size=6))
    pixels, labels = source.load(rows)
    every, every_label = all_of(source)
    assert pixels.shape == (len(rows), *source.shape)
    assert (pixels.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(pixels, every[rows])
    assert torch.equal(labels, every_label[rows])


@given(st.data(), st.integers(1, 9))
def test_batches_of_any_size_are_the_order_cut_into_pieces(source, data, batch_size):
    order = data.draw(st.permutations(range(len(source))))
    read = list(batches(source, order, batch_size))
    assert [len(labels) for _, labels in read[:-1]] == [batch_size] * (len(read) - 1)
    pixels, labels = source.load(order)
    assert torch.equal(torch.cat([part for part, _ in read]), pixels)
    assert torch.equal(torch.cat([part for _, part in read]), labels)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_the_same_batches(source, workers):
    order = [*reversed(range(len(source))), 0, 1]
    alone = list(batches(source, order, 3))
    state = torch.get_rng_state()
    together = list(batches(source, order, 3, workers=workers))
    assert len(together) == len(alone)
    for (pixels, labels), (others, other_labels) in zip(alone, together, strict=True):
        assert torch.equal(pixels, others)
        assert torch.equal(labels, other_labels)
    assert torch.equal(state, torch.get_rng_state())


def test_tensors_can_be_written_to(source):
    pixels, _ = source.load([0, 1])
    pixels += 1
    assert not torch.equal(pixels, source.load([0, 1])[0])


@pytest.mark.parametrize("rows", [[-1], [0, 1000]])
def test_rows_that_are_not_there_are_refused(source, rows):
    with pytest.raises(IndexError, match=f"of a source of {len(source)} images"):
        source.load(rows)


def test_no_batches_of_nothing(source):
    assert list(batches(source, [], 4)) == []
    with pytest.raises(ValueError, match="cannot read in batches of 0"):
        next(batches(source, [0], 0))


def test_batches_may_be_left_half_way(source):
    stream = batches(source, range(len(source)), 2, workers=2)
    assert len(next(stream)[1]) == 2
    del stream


# --- arrays ------------------------------------------------------------------------------------


def test_an_array_is_a_source_of_what_it_holds():
    data = toy_images(20)
    source = ArraySource(data)
    pixels, labels = source.load([3, 3, 19])
    assert np.array_equal(pixels.numpy(), data.images[[3, 3, 19]])
    assert labels.tolist() == data.labels[[3, 3, 19]].tolist()
    assert (source.digest, source.labelled, source.skipped) == (data.digest, True, [])
    assert source.shape == (1, 8, 8)


def test_an_array_without_all_labels_is_unlabelled():
    data = LabelledImages(toy_images(2).images, np.array([1, -1]))
    assert not ArraySource(data).labelled


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_holds_its_images_by_name_at_any_depth(flat):
    source = FolderSource(flat, SHAPE, labelled=False)
    assert len(source) == 12
    assert all_of(source)[1].tolist() == [-1] * 12
    assert source.skipped == []
    for row, path in enumerate(sorted(flat.glob("*.JPEG"))):
        with Image.open(path) as image:
            assert torch.equal(source.load([row])[0][0], timm_view(image))


def timm_view(image: Image.Image, crop: float = 0.875) -> torch.Tensor:
    from timm.data.transforms_factory import transforms_imagenet_eval

    view = transforms_imagenet_eval(
        SHAPE[1:], crop_pct=crop, interpolation="bicubic", use_prefetcher=True
    )
    return torch.as_tensor(view(image.convert("RGB")))


@settings(max_examples=60)
@given(
    st.integers(1, 80),
    st.integers(1, 80),
    st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0]),
    st.integers(0, 99),
)
def test_images_are_cut_as_timm_evaluates(tmp_path_factory, width, height, crop, seed):
    image = picture(seed, (width, height))
    path = tmp_path_factory.getbasetemp() / "one" / "image.png"
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    source = FolderSource(path.parent, SHAPE, labelled=False, crop=crop)
    assert torch.equal(source.load([0])[0][0], timm_view(image, crop))


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_any_image_fills_any_shape(tmp_path_factory, high, wide, width, height):
    path = tmp_path_factory.getbasetemp() / "white" / "image.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (width, height), 255).save(path)
    source = FolderSource(path.parent, (1, high, wide), labelled=False)
    assert torch.equal(source.load([0])[0], torch.full((1, 1, high, wide), 255, dtype=torch.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_of_eight_bits_is_converted(tmp_path, mode, channels):
    picture(1, mode=mode).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    source = FolderSource(tmp_path, (channels, 16, 16), labelled=False)
    assert source.load([0])[0].shape == (1, channels, 16, 16)


def test_the_digest_is_of_names_sizes_and_the_view(tmp_path):
    def digest(folder: Path, shape: Shape = SHAPE, **options: Any) -> str:
        return FolderSource(folder, shape, **{"labelled": False, **options}).digest

    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        put(folder / "class" / "a.jpg", encoded(1))
    os.utime(two / "class" / "a.jpg", (0, 0))
    assert digest(one) == digest(two)
    others = [
        digest(one),
        digest(one, (3, 8, 8)),
        digest(one, crop=1.0),
        digest(one, labelled=True),
    ]
    put(two / "class" / "b.jpg", encoded(1))
    others.append(digest(two))
    (two / "class" / "b.jpg").rename(two / "class" / "c.jpg")
    others.append(digest(two))
    put(two / "class" / "c.jpg", encoded(1) + b"\0")
    others.append(digest(two))
    assert len(set(others)) == len(others)


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    put(tmp_path / "a" / "image.jpg", encoded(1))
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(FolderSource(tmp_path, SHAPE, labelled=False)) == 1


def test_a_class_folder_may_be_a_link(tmp_path):
    put(tmp_path / "elsewhere" / "image.jpg", encoded(1))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "class").symlink_to(tmp_path / "elsewhere")
    assert len(FolderSource(tmp_path / "data", SHAPE, labelled=True)) == 1


def test_names_that_are_no_text_are_read(tmp_path):
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")), encoded(1))
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.jpg")), b"")
    source = FolderSource(tmp_path, SHAPE, labelled=False)
    all_of(source)
    assert len(source.digest) == 64
    assert source.skipped == [Skipped("\ufffd.jpg", "is empty")]


# --- broken images -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_broken_images_are_named_and_the_next_good_one_is_read(damaged, workers):
    source = FolderSource(damaged, SHAPE, labelled=False)
    parts = list(batches(source, range(9), 2, workers=workers))
    pixels = torch.cat([part for part, _ in parts])
    assert [(s.row, s.path) for s in source.skipped] == [
        (0, "0.jpg"),
        (1, "1.jpg"),
        (4, "4.jpg"),
        (7, "7.png"),
        (8, "8.jpg"),
    ]
    for (_, reason), skipped in zip(DAMAGE, source.skipped, strict=True):
        assert reason in skipped.reason
    assert broken_rows(source) == {0, 1, 4, 7, 8}
    for row, instead in {0: 2, 1: 2, 4: 5, 7: 2, 8: 2}.items():
        assert torch.equal(pixels[row], pixels[instead])
    assert len({part.numpy().tobytes() for part in pixels}) == 4


@given(order=st.permutations(range(9)), batch_size=st.integers(1, 9))
def test_what_is_read_instead_does_not_depend_on_the_order(damaged, order, batch_size):
    first, second = (FolderSource(damaged, SHAPE, labelled=False) for _ in range(2))
    every = all_of(first)[0]
    for rows, (pixels, _) in zip(
        range(0, 9, batch_size), batches(second, order, batch_size), strict=True
    ):
        assert torch.equal(pixels, every[order[rows : rows + batch_size]])
    assert broken_rows(first) == broken_rows(second)


def test_workers_find_what_one_process_finds_in_the_same_order(damaged):
    order = [5, 8, 4, 3, 7, 4, 1, 2, 0, 8]
    alone, together = (FolderSource(damaged, SHAPE, labelled=False) for _ in range(2))
    list(batches(alone, order, 2))
    list(batches(together, order, 2, workers=3))
    assert alone.skipped == together.skipped
    assert len(alone.skipped) == 5


def test_an_image_that_is_read_instead_brings_its_own_label(classes):
    (classes / "ant" / "by day" / "1.jpg").write_bytes(b"")
    source = FolderSource(classes, SHAPE, labelled=True)
    assert all_of(source)[1].tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_a_bomb_is_skipped_and_a_large_image_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    picture(1, (40, 40)).save(tmp_path / "large.png")
    picture(2, (60, 60)).save(tmp_path / "bomb.png")
    picture(3, (500, 1)).save(tmp_path / "thin.png")
    source = FolderSource(tmp_path, SHAPE, labelled=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_of(source)
    bomb, thin = source.skipped
    assert (bomb.path, thin.path) == ("bomb.png", "thin.png")
    assert "could be decompression bomb" in bomb.reason
    assert thin.reason == "is too narrow: 500 x 1 pixels"


def test_no_program_is_started_for_postscript(tmp_path):
    put(
        tmp_path / "a.jpg",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    )
    put(tmp_path / "b.jpg", encoded(1))
    source = FolderSource(tmp_path, SHAPE, labelled=False)
    assert source.skipped == [Skipped("a.jpg", "is no image")]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg", encoded(1))
    assert FolderSource(tmp_path, SHAPE, labelled=False).skipped == [Skipped("a.jpg", "is no file")]


@settings(max_examples=80)
@given(cut=st.integers(0, 900), noise=st.binary(max_size=30))
def test_no_damage_gets_out(tmp_path_factory, cut, noise):
    folder = tmp_path_factory.getbasetemp() / "noise"
    put(folder / "b.jpg", encoded(1))
    whole = encoded(2, size=(64, 64))
    put(folder / "a.jpg", whole[:cut] + noise + whole[cut + len(noise) :])
    assert all_of(FolderSource(folder, SHAPE, labelled=False))[0].shape == (2, *SHAPE)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_vanish_are_said_to(tmp_path, workers):
    put(tmp_path / "a.jpg", encoded(1))
    source = FolderSource(tmp_path, SHAPE, labelled=False)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(
        ArtifactError, match=r"^\S+: none of its 1 images can be read \(a.jpg is no"
    ):
        list(batches(source, [0], 1, workers=workers))


# --- what is refused ---------------------------------------------------------------------------


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no image; files that end in .bmp .gif"):
        open_source(tmp_path, labelled=False)


def test_a_folder_of_broken_images_is_refused_when_it_is_opened(tmp_path):
    put(tmp_path / "a.jpg", b"")
    put(tmp_path / "b.jpg", b"text")
    with pytest.raises(ArtifactError, match=r"none of its 2 images can be read \(a.jpg is empty\)"):
        open_source(tmp_path, labelled=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "there is nothing at .*nothing; give a folder of images .*, or a video"),
        ("a.jpg", b"", r"a.jpg is neither a folder nor a video file; give .* \(.avi .m4v"),
        ("a.mp4", b"text", "a.mp4 cannot be read as a video: Invalid data .*; play it to see"),
        ("a.avi", b"", "a.avi cannot be read as a video"),
    ],
)
def test_what_is_no_source_is_refused_saying_what_is(tmp_path, name, content, message):
    if content is not None:
        put(tmp_path / name, content)
    with pytest.raises(ArtifactError, match=message):
        open_source(tmp_path / name, labelled=False)


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 0, 8)])
def test_impossible_shapes_are_refused(flat, shape):
    with pytest.raises(ValueError, match="images have 1 or 3 channels"):
        FolderSource(flat, shape, labelled=False)


@pytest.mark.parametrize("crop", [0, 1.1])
def test_impossible_crops_are_refused(flat, crop):
    with pytest.raises(ValueError, match="crop is the share of an image that is kept"):
        FolderSource(flat, SHAPE, labelled=False, crop=crop)


# --- labels ------------------------------------------------------------------------------------


def test_labels_are_the_places_of_sorted_class_folders(classes):
    put(classes / "loose.jpg", encoded(1))
    source = open_source(classes, shape=SHAPE, labelled=True, num_classes=3)
    assert source.labelled
    assert all_of(source)[1].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_the_same_folder_without_labels_holds_all_images(classes):
    put(classes / "loose.jpg", encoded(1))
    source = open_source(classes, shape=SHAPE, labelled=False)
    assert not source.labelled
    assert all_of(source)[1].tolist() == [-1] * 10


def test_an_empty_class_folder_keeps_its_label(classes):
    (classes / "bee").mkdir()
    source = FolderSource(classes, SHAPE, labelled=True, num_classes=4)
    assert all_of(source)[1].tolist() == [0, 0, 2, 2, 2, 3, 3, 3, 3]


def test_given_classes_say_the_labels(classes):
    names = ["owl", "dog", "cat", "ant"]
    source = FolderSource(classes, SHAPE, labelled=True, classes=names)
    assert all_of(source)[1].tolist() == [3, 3, 2, 2, 2, 1, 1, 1, 1]


def test_some_of_imagenets_classes_have_imagenets_labels(tmp_path):
    for name in ("n03888257", "n01440764", "n15075141"):
        put(tmp_path / name / "a.jpg", encoded(1))
    source = FolderSource(tmp_path, SHAPE, labelled=True, num_classes=1000)
    assert all_of(source)[1].tolist() == [0, 701, 999]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 2}, r"has 3 class folders \(ant, cat, dog\), but the network knows 2"),
        ({"num_classes": 4}, "the network knows 4 classes, and the names do not say which"),
        ({"num_classes": 1000}, "make an empty folder for each class that is missing"),
        ({"classes": ["ant", "dog"]}, r"of which cat are none of the 2 classes \(ant, dog\)"),
    ],
)
def test_folders_that_do_not_say_the_classes_are_refused(classes, options, message):
    with pytest.raises(ArtifactError, match=message):
        open_source(classes, shape=SHAPE, labelled=True, **options)


def test_a_flat_folder_has_no_labels_to_give(flat, tmp_path):
    put(tmp_path / "a.jpg", encoded(1))
    with pytest.raises(ArtifactError, match="has no class folders; labelled images lie in one"):
        open_source(tmp_path, labelled=True)


def test_class_folders_without_images_are_refused(tmp_path):
    (tmp_path / "class").mkdir()
    put(tmp_path / "loose.jpg", encoded(1))
    with pytest.raises(ArtifactError, match="holds no image"):
        open_source(tmp_path, labelled=True)


def test_a_video_has_no_labels_to_give(films):
    with pytest.raises(ArtifactError, match="is a video, which has no labels; give a folder"):
        open_source(films["film.mp4"], labelled=True)


# --- videos ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_video_gives_every_so_many_frames(films, name, every):
    source = open_source(films[name], shape=SHAPE, labelled=False, every=every)
    pixels, labels = all_of(source)
    assert source.skipped == []
    grey = pixels.float().mean((1, 2, 3)) / 6
    expected = list(range(0, 40, every))
    np.testing.assert_allclose(grey, expected, atol=1)
    assert labels.tolist() == [-1] * len(expected)


def test_frames_are_scaled_as_images_are(films):
    with VideoSource(films["film.avi"], (1, 12, 20)) as source:
        assert source.load([0, 39])[0].shape == (2, 1, 12, 20)


def test_a_video_has_the_same_digest_each_time_and_under_each_name(films, tmp_path):
    copy = put(tmp_path / "copy.mp4", films["film.mp4"].read_bytes())
    paths = [films["film.mp4"], copy, films["film.avi"]]
    first, again, other = (VideoSource(path, SHAPE).digest for path in paths)
    assert first == again
    assert len({first, other, VideoSource(copy, SHAPE, every=2).digest}) == 3


@pytest.mark.parametrize("name", ["film.avi", "film.mkv"])
def test_a_video_that_is_cut_short_keeps_its_frames_and_says_so(films, tmp_path, name):
    whole = films[name].read_bytes()
    path = put(tmp_path / name, whole[: 6 * len(whole) // 10])
    with VideoSource(path, SHAPE) as source, VideoSource(films[name], SHAPE) as uncut:
        assert 10 < len(source) < 30
        assert torch.equal(all_of(source)[0], uncut.load(range(len(source)))[0])
        (skipped,) = source.skipped
    assert skipped.path == name
    assert f"is cut short or damaged: {len(source)} " in skipped.reason
    assert broken_rows(source) == set()


def test_a_video_damaged_within_keeps_the_frames_that_decode(films, tmp_path):
    damaged = bytearray(films["film.mp4"].read_bytes())
    half = len(damaged) // 2
    damaged[half : half + half // 5] = bytes(half // 5)
    with VideoSource(put(tmp_path / "film.mp4", bytes(damaged)), SHAPE) as source:
        assert 20 < len(source) < 40
        (skipped,) = source.skipped
    assert f"{len(source)} of 40 frames decode, {40 - len(source)} do not" in skipped.reason


def test_a_video_without_its_index_is_refused_by_name(films, tmp_path):
    path = put(tmp_path / "cut.mp4", films["film.mp4"].read_bytes()[:-400])
    with pytest.raises(ArtifactError, match=r"cut.mp4 cannot be read as a video: .* convert it"):
        VideoSource(path, SHAPE)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ArtifactError, match=r"sound.avi has no video stream; play it"):
        VideoSource(path, SHAPE)


def test_without_its_decoder_a_video_says_what_to_install(films, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ArtifactError, match=r"needs PyAV: pip install 'edgestitch\[video\]'"):
        VideoSource(films["film.mp4"], SHAPE)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_that_takes_too_much_room_is_refused_saying_what_fits(films, name):
    shape = (3, 224, 224)
    with pytest.raises(
        ArtifactError, match=r"more than the 6 frames .*; take fewer with every="
    ) as e:
        VideoSource(films[name], shape, cache_mib=1)
    every = int(str(e.value).partition("every=")[2].partition(",")[0])
    if name != "film.mkv":  # which does not say how many there are
        assert len(VideoSource(films[name], shape, cache_mib=1, every=every)) <= 6


def test_a_full_disk_is_said(films, monkeypatch, tmp_path):
    file = put(tmp_path / "file", b"")
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(tempfile, "mkstemp", lambda **_: (full, file))
    with pytest.raises(ArtifactError, match=r"cannot be kept in .*: No space left .* set TMPDIR"):
        VideoSource(films["film.mp4"], SHAPE)


def test_a_folder_that_cannot_be_written_is_said(films, monkeypatch, tmp_path):
    monkeypatch.setattr(images, "_cache_folder", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactError, match=r"need room in .*nowhere: No such file"):
        VideoSource(films["film.mp4"], SHAPE)


def test_frames_lie_in_tmpdir_under_no_name_until_closed(films, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def held() -> list[str]:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [link for link in links if link.startswith(str(tmp_path))]

    source = VideoSource(films["film.mp4"], SHAPE)
    assert list(tmp_path.iterdir()) == []
    assert len(held()) == 1
    source.close()
    source.close()
    assert held() == []
    with pytest.raises(ValueError, match="were closed"):
        source.load([0])
    forgotten = VideoSource(films["film.mp4"], SHAPE)
    del forgotten
    assert held() == []


def test_progress_tells_of_frames(films):
    told = []
    VideoSource(films["film.mp4"], SHAPE, every=10, progress=lambda *now: told.append(now))
    assert told == [("frames of film.mp4", done, 40) for done in (0, 10, 20, 30)]


@pytest.mark.parametrize("every", [0, -1])
def test_every_is_at_least_one(films, every):
    with pytest.raises(ValueError, match="at least 1"):
        VideoSource(films["film.mp4"], SHAPE, every=every)


# --- memory ------------------------------------------------------------------------------------

READ_ALL = """
import sys
from pathlib import Path
from edgestitch.images import FolderSource, batches

def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

source = FolderSource(Path(sys.argv[1]), (3, 224, 224), labelled=False)
stream = batches(source, range(len(source)), 50)
next(stream)
before = peak_mib()
number = 50 + sum(len(labels) for _, labels in stream)
print(number, peak_mib() - before)
"""


def test_two_thousand_images_are_not_held_at_once(tmp_path):
    content = encoded(1)
    for index in range(2000):
        (tmp_path / f"{index}.jpg").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(images.__file__).parent.parent)},
        check=True,
        capture_output=True,
        text=True,
    )
    number, grown_mib = done.stdout.split()
    assert int(number) == 2000
    assert float(grown_mib) < 60  # all of them: 287 MiB; a batch: 7


# --- random crops ------------------------------------------------------------------------------


@given(
    st.integers(0, 4), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99)
)
def test_crops_are_of_the_images_shape_and_the_generators_alone(number, channels, high, wide, seed):
    pixels = torch.randint(256, (number, channels, high, wide), dtype=torch.uint8)
    state = torch.get_rng_state()
    first, again = (
        random_resized_crop(pixels, torch.Generator().manual_seed(seed)) for _ in range(2)
    )
    assert (first.shape, first.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(0.05, 1),
    st.floats(0.05, 1),
    st.integers(0, 99),
)
def test_the_part_lies_in_the_image_and_has_its_share(high, wide, one, other, seed):
    scale = min(one, other), max(one, other)
    generator = torch.Generator().manual_seed(seed)
    for top, left, h, w in images._boxes(8, high, wide, generator, scale):
        assert 0 <= top <= top + h <= high
        assert 0 <= left <= left + w <= wide
        assert h >= 1
        assert w >= 1
        whole = (h, w) == (high, wide)
        assert whole or scale[0] * high * wide - (h + w) <= h * w <= scale[1] * high * wide + h + w


def test_parts_of_large_images_have_the_shares_and_ratios_of_the_law():
    generator = torch.Generator().manual_seed(0)
    boxes = np.array(images._boxes(4000, 1000, 1000, generator, (0.35, 0.6)), float)
    share, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 3] / boxes[:, 2])
    assert share.mean() == pytest.approx(0.475, abs=0.01)
    assert (share.min(), share.max()) == pytest.approx((0.35, 0.6), abs=0.01)
    assert ratio.mean() == pytest.approx(0, abs=0.02)
    assert (ratio.min(), ratio.max()) == pytest.approx((-np.log(4 / 3), np.log(4 / 3)), abs=0.01)


def test_a_generator_draws_alike_for_any_scale():
    pixels = torch.zeros(3, 1, 9, 9, dtype=torch.uint8)
    states = []
    for scale in ((0.35, 1.0), (1.0, 1.0), (0.01, 0.02)):
        generator = torch.Generator().manual_seed(5)
        random_resized_crop(pixels, generator, scale)
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)


def test_the_whole_of_an_image_is_the_image():
    pixels = torch.randint(256, (2, 3, 1, 9), dtype=torch.uint8)  # nothing of ratio 4/3 fits
    crops = random_resized_crop(pixels, torch.Generator().manual_seed(0), (1.0, 1.0))
    assert torch.equal(crops, pixels)


# --- evaluation --------------------------------------------------------------------------------


@pytest.fixture
def quadrants(tmp_path):
    """The toy family's images as files, the tenth of them broken."""
    data = toy_images(64)
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = tmp_path / "quadrants" / f"class {label}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    return tmp_path / "quadrants"


def toy_folder(folder: Path, labelled: bool = True) -> FolderSource:
    return FolderSource(folder, (1, 8, 8), labelled=labelled, crop=1.0)


@pytest.mark.parametrize("readers", [0, 2])
def test_a_folder_is_judged_as_the_same_images_in_memory(toy_network, quadrants, readers):
    result = evaluate(toy_network, toy_folder(quadrants), batch_size=10, readers=readers)
    assert result.rows == evaluate(toy_network, toy_images(64)).rows
    assert (result.num_images, result.data) == (64, toy_folder(quadrants).digest)


@pytest.mark.parametrize("readers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 10, 100])
def test_broken_images_count_for_nothing(toy_network, quadrants, readers, batch_size):
    broken = sorted(quadrants.rglob("*.png"))[9:12]
    for path in broken:
        path.write_bytes(b"")
    source = toy_folder(quadrants)
    result = evaluate(toy_network, source, batch_size=batch_size, readers=readers)
    for path in broken:
        path.unlink()
    without = evaluate(toy_network, toy_folder(quadrants))
    assert result.num_images == without.num_images == 61
    assert result.rows == without.rows
    assert len(source.skipped) == 3


def test_what_has_no_labels_cannot_be_judged(toy_network, quadrants):
    with pytest.raises(ValueError, match="no labels"):
        evaluate(toy_network, toy_folder(quadrants, labelled=False))


@pytest.fixture
def colour_family(toy_family):
    return msgspec.structs.replace(
        toy_family, input_shape=SHAPE, num_classes=3, mean=(0.5,) * 3, std=(0.5,) * 3
    )


def test_colour_networks_are_judged_by_a_folder_of_classes(colour_family, classes):
    source = evaluation_images(colour_family, classes)
    assert (source.shape, len(source), source.labelled) == (SHAPE, 9, True)
    with pytest.raises(ArtifactError, match="one folder of images for each of its 3 classes"):
        evaluation_images(colour_family)


def test_imagenets_classes_are_enough_for_a_shipped_family(tmp_path):
    put(tmp_path / "n01440764" / "a.jpg", encoded(1))
    source = evaluation_images(load_family("deit-ti-s-b"), tmp_path)
    assert all_of(source)[0].shape == (1, 3, 224, 224)


def test_the_verb_judges_by_a_folder_and_says_what_it_left_out(colour_family, classes, tmp_path):
    (classes / "cat" / "by day" / "1.jpg").write_bytes(b"text")
    save_network(build_network(colour_family), tmp_path / "net.safetensors")
    arguments = ["evaluate", f"{tmp_path}/net.safetensors", "--out", f"{tmp_path}/accuracy.json"]
    done = CliRunner().invoke(cli, [*arguments, "--data", str(classes), "--readers", "2"])
    assert done.exit_code == 0, done.output
    assert "toy: 8 images" in done.stdout
    assert done.stderr == "1 broken left out: cat/by day/1.jpg is no image\n"
    assert load_accuracy(tmp_path / "accuracy.json").num_images == 8
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    assert "give a folder with one folder of images for each of its 3 classes" in done.stderr


# --- selections ------------------------------------------------------------------------------


def numbered(number: int, *, labelled: bool = True) -> ArraySource:
    images = np.arange(number, dtype=np.uint8).reshape(-1, 1, 1, 1)
    labels = np.arange(number) if labelled else np.full(number, -1)
    return ArraySource(LabelledImages(images, labels))


@given(st.integers(2, 60), st.integers(2, 12), st.booleans())
def test_what_is_held_out_and_what_is_left_are_the_whole(number, every, labelled):
    train, test = held_out(numbered(number, labelled=labelled), every=every)
    seen = [part.load(range(len(part)))[0].flatten().tolist() for part in (train, test)]
    assert sorted(seen[0] + seen[1]) == list(range(number))
    assert len(test) == -(-number // every)
    assert train.labelled == test.labelled == labelled
    assert train.digest != test.digest


def test_frames_are_judged_by_the_last_ones():
    train, test = held_out(numbered(30, labelled=False))
    assert test.load(range(len(test)))[0].flatten().tolist() == [27, 28, 29]
    assert len(train) == 27


def test_one_image_cannot_be_divided():
    with pytest.raises(ArtifactError, match="1 image is too few"):
        held_out(numbered(1))


def test_a_selection_names_its_own_broken_rows(tmp_path):
    for index in range(6):
        put(tmp_path / f"{index}.png", encoded(index))
    (tmp_path / "3.png").write_text("no picture")
    source = FolderSource(tmp_path, (3, 8, 8), labelled=False)
    selection = Selection(source, [1, 3, 5])
    selection.load([0, 1, 2])
    assert [(skipped.path, skipped.row) for skipped in selection.skipped] == [("3.png", 1)]
    assert Selection(source, [0, 2]).load([0, 1])[0].shape == (2, 3, 8, 8)
