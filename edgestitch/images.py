"""Images in folders and videos, read when they are asked for, so that any number fits in memory.

    arrays, a folder, a video  ->  Source  ->  batches of uint8 [B, C, H, W] and their labels

What is broken is named and left out: its row gives the next good image instead, the same in every
run, and `skipped` says so. Every image is scaled and cropped as timm evaluates; flags that ask a
viewer to turn a picture (EXIF, display matrices) are not followed, as they are not there either.
"""

import hashlib
import math
import multiprocessing
import os
import tempfile
import warnings
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .data import LabelledImages, fashion_mnist
from .errors import ArtifactError
from .family import Family
from .progress import Progress, silent

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

Shape = tuple[int, int, int]
"""Channels, height, width."""

IMAGENET: Shape = (3, 224, 224)
CROP = 0.875
"""The share of the scaled image's sides that is kept: 224 of 256 pixels (timm's crop_pct)."""

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")

# Pillow looks at what a file holds, not at its name, and would start Ghostscript for an EPS.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
COLOURS = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Skipped:
    """Something broken that was left out."""

    path: str
    reason: str
    row: int | None = field(default=None, compare=False)
    """The row that gives another image instead; none where no row was lost (a video cut short)."""


class Source(Protocol):
    """Images in a fixed order, read when they are asked for."""

    @property
    def shape(self) -> Shape:
        """Channels, height and width of every image."""

    @property
    def digest(self) -> str:
        """SHA-256 that tells two sources apart, the same on every machine and at any time."""

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""

    @property
    def skipped(self) -> list[Skipped]:
        """What was found broken so far, in the order it was found."""

    def __len__(self) -> int: ...

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, C, H, W] and labels int64 [B], -1 where there is none."""


def open_source(
    path: Path,
    *,
    shape: Shape = IMAGENET,
    labelled: bool,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    crop: float = CROP,
    every: int = 1,
    progress: Progress = silent,
) -> "FolderSource | VideoSource":
    """The images in a folder, or the frames of a video file.

    Raises:
        ArtifactError: it is neither, or no images could be read from it.
    """
    if path.is_dir():
        return FolderSource(
            path, shape, labelled=labelled, classes=classes, num_classes=num_classes, crop=crop
        )
    accepted = (
        f"a folder of images ({' '.join(IMAGE_SUFFIXES)}), or a video file "
        f"({' '.join(VIDEO_SUFFIXES)})"
    )
    if not path.is_file():
        raise ArtifactError(f"there is nothing at {path}; give {accepted}")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ArtifactError(f"{path} is neither a folder nor a video file; give {accepted}")
    if labelled:
        raise ArtifactError(
            f"{path} is a video, which has no labels; give a folder with one folder for each class"
        )
    return VideoSource(path, shape, every=every, crop=crop, progress=progress)


def evaluation_images(family: Family, path: Path | None = None) -> Source:
    """What judges networks of a family: Fashion-MNIST's test images for one channel, else a folder.

    Raises:
        ArtifactError: the images are not here; the message says which are needed.
    """
    if family.input_shape[0] == 1:
        return ArraySource(fashion_mnist("test", path))
    if path is None:
        raise ArtifactError(
            f"{family.name} is judged by images of your own: give a folder with one folder of "
            f"images for each of its {family.num_classes} classes as --data FOLDER"
        )
    return open_source(
        path, shape=family.input_shape, labelled=True, num_classes=family.num_classes
    )


def as_source(data: "LabelledImages | Source") -> Source:
    """Images in memory as a source; a source as it is."""
    return ArraySource(data) if isinstance(data, LabelledImages) else data


def broken_rows(source: Source) -> set[int]:
    """The rows that were found broken so far, each of which gives another row's image."""
    return {skipped.row for skipped in source.skipped if skipped.row is not None}


# --- in memory ---------------------------------------------------------------------------------


class ArraySource:
    """Images that are in memory already."""

    def __init__(self, data: LabelledImages) -> None:
        self.data = data
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        return len(self.data)

    @property
    def shape(self) -> Shape:
        channels, height, width = self.data.images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        return self.data.digest

    @cached_property
    def labelled(self) -> bool:
        return bool((self.data.labels >= 0).all())

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        index = _checked(rows, len(self))
        labels = self.data.labels[index].astype(np.int64)
        return torch.from_numpy(self.data.images[index]), torch.from_numpy(labels)


class Selection:
    """Some rows of a source, as a source."""

    def __init__(self, source: Source, rows: Sequence[int]) -> None:
        self.source = source
        self.rows = _checked(rows, len(source))
        self.skipped: list[Skipped] = []
        self._places = {int(row): place for place, row in enumerate(self.rows)}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> Shape:
        return self.source.shape

    @property
    def labelled(self) -> bool:
        return self.source.labelled

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.source.digest.encode() + self.rows.tobytes()).hexdigest()

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        loaded = self.source.load(self.rows[_checked(rows, len(self))])
        known = broken_rows(self)
        for skipped in self.source.skipped:
            place = None if skipped.row is None else self._places.get(skipped.row)
            if place is not None and place not in known:
                self.skipped.append(replace(skipped, row=place))
        return loaded


def held_out(source: Source, *, every: int = 10) -> tuple[Selection, Selection]:
    """All images but every tenth, and these: to learn from, and to judge by.

    Of images without labels it is the last tenth, since neighbouring frames of a video are alike.
    """
    number = len(source)
    if number < 2:
        raise ArtifactError(f"{number} image is too few to learn from some and judge by others")
    test = (
        range(0, number, every) if source.labelled else range(number - -(-number // every), number)
    )
    chosen = set(test)
    return Selection(source, [r for r in range(number) if r not in chosen]), Selection(source, test)


# --- folders -----------------------------------------------------------------------------------


class FolderSource:
    """The images in a folder and its folders, by name.

    Labelled, the folder holds one folder for each class, and a class's label is its place among
    their sorted names (torchvision's ImageFolder); images beside these folders belong to no class
    and are left out. `classes` names all classes by label instead, and `num_classes` says how many
    the network knows: a folder with fewer is accepted where its names tell which they are, as the
    WordNet numbers of ImageNet do. Unlabelled, all images at any depth are taken.

    Names that start with a dot are passed over.

    Raises:
        ArtifactError: nothing can be read, or the folders do not say which class an image has.
    """

    def __init__(
        self,
        folder: Path,
        shape: Shape = IMAGENET,
        *,
        labelled: bool,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        crop: float = CROP,
    ) -> None:
        self.folder = folder
        self.shape = _checked_shape(shape, crop)
        self.labelled = labelled
        self.crop = crop
        self.skipped: list[Skipped] = []
        found = sorted(_files(folder))
        by_class = _class_labels(folder, classes, num_classes) if labelled else {}
        if labelled:
            found = [(name, size) for name, size in found if name.partition("/")[0] in by_class]
        self._names = [name for name, _ in found]
        self._sizes = [size for _, size in found]
        self._labels = np.array(
            [by_class.get(name.partition("/")[0], -1) for name in self._names], np.int64
        )
        if not found:
            raise ArtifactError(
                f"{folder} holds no image; files that end in {' '.join(IMAGE_SUFFIXES)} "
                "are looked for, in folders as well; put some there or give another folder"
            )
        self._read(0)  # where nothing can be read, that is said now

    def __len__(self) -> int:
        return len(self._names)

    @cached_property
    def digest(self) -> str:
        """Of names, sizes and labels, and of how images are scaled; not of what files hold."""
        hasher = hashlib.sha256(f"folder {self.shape} {self.crop}\n".encode())
        for name, size, label in zip(self._names, self._sizes, self._labels, strict=True):
            hasher.update(os.fsencode(f"{name}\0{size}\0{label}\n"))
        return hasher.hexdigest()

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        index = _checked(rows, len(self))
        pixels = np.empty((len(index), *self.shape), np.uint8)
        read = index.copy()
        for place, row in enumerate(index):
            read[place], pixels[place] = self._read(int(row))
        return torch.from_numpy(pixels), torch.from_numpy(self._labels[read])

    def _read(self, row: int) -> tuple[int, np.ndarray]:
        """The first good image from that row on, and the row it is at."""
        broken = broken_rows(self)
        for candidate in chain(range(row, len(self)), range(row)):
            if candidate in broken:
                continue
            name = self._names[candidate]
            try:
                return candidate, _read_image(self.folder / name, self.shape, self.crop)
            except _BrokenError as error:
                shown = os.fsencode(name).decode(errors="replace")
                self.skipped.append(Skipped(shown, str(error), candidate))
        first = self.skipped[0]
        raise ArtifactError(
            f"{self.folder}: none of its {len(self)} images can be read ({first.path} "
            f"{first.reason}); give a folder of whole images"
        )


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Name, relative and with slashes, and size of each image in a folder, at any depth."""
    try:
        yield from _files_under(str(folder), "", frozenset())
    except OSError as error:
        raise ArtifactError(f"cannot read the folder {folder}: {error}") from error


def _files_under(folder: str, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, int]]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that it lies in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files_under(entry.path, f"{name}/", above | {real})
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                # A link to nothing stays in the list, so that it is named as skipped.
                yield name, entry.stat().st_size if entry.is_file() else -1


def _class_labels(
    folder: Path, classes: Sequence[str] | None, num_classes: int | None
) -> dict[str, int]:
    """The label of each class folder."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ArtifactError(
            f"{folder} has no class folders; labelled images lie in one folder for each class "
            f"({folder}/CLASS/IMAGE.jpg); sort them so, or use them without labels"
        )
    if num_classes is not None and len(names) > num_classes:
        raise ArtifactError(
            f"{folder} has {len(names)} class folders ({_some(names)}), but the network knows "
            f"{num_classes} classes; give the folder its classes come from"
        )
    if classes is None:
        classes = (
            names if num_classes in (None, len(names)) else _imagenet(folder, names, num_classes)
        )
    labels = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise ArtifactError(
            f"{folder} has {len(names)} class folders, of which {_some(unknown)} are none of the "
            f"{len(labels)} classes ({_some(list(labels))}); rename or remove them"
        )
    return {name: labels[name] for name in names}


def _imagenet(folder: Path, names: list[str], num_classes: int | None) -> list[str]:
    """ImageNet's classes by label, where the names are some of them."""
    from timm.data.imagenet_info import ImageNetInfo

    known: list[str] = ImageNetInfo().label_names()  # type: ignore[no-untyped-call]
    if num_classes == len(known) and set(names) <= set(known):
        return known
    raise ArtifactError(
        f"{folder} has {len(names)} class folders ({_some(names)}) but the network knows {num_classes} "
        "classes, and the names do not say which of them these are; make an empty folder for each "
        "class that is missing, so that their order does"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class _BrokenError(Exception):
    """Why an image cannot be used; never leaves this module."""


def _read_image(path: Path, shape: Shape, crop: float = CROP) -> np.ndarray:
    """The image in a file, uint8 [C, H, W], scaled and cropped to that shape."""
    if not path.is_file():  # a pipe would be waited for
        raise _BrokenError("is no file")
    if not path.stat().st_size:
        raise _BrokenError("is empty")
    try:
        with warnings.catch_warnings():
            # Of large images, odd metadata, palettes: the pixels are there all the same.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return fit(image, shape, crop)
    except _BrokenError:
        raise
    except UnidentifiedImageError as error:
        raise _BrokenError("is no image") from error
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise _BrokenError(f"cannot be read: {error}") from error


def fit(image: Image.Image, shape: Shape, crop: float = CROP) -> np.ndarray:
    """An image's centre, uint8 [C, H, W], as timm evaluates: the short side scaled, then cut."""
    channels, height, width = shape
    if image.mode.startswith(("I", "F")):  # Pillow would cut off what is above 255
        raise _BrokenError(f"has pixels of more than 8 bits (Pillow's mode {image.mode})")
    size = _scaled((image.width, image.height), (width, height), crop)
    if math.prod(size) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise _BrokenError(f"is too narrow: {image.width} x {image.height} pixels")
    image = image.convert(COLOURS[channels]).resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _scaled(size: tuple[int, int], target: tuple[int, int], crop: float) -> tuple[int, int]:
    """Width and height that cover the target over `crop`, rounded as torchvision does."""
    width, height = size
    wide, tall = (math.floor(side / crop) for side in target)
    if tall * width >= wide * height:
        return int(tall * width / height), tall
    return wide, int(wide * height / width)


def _checked(rows: Sequence[int], number: int) -> np.ndarray:
    index = np.asarray(rows, np.int64).reshape(-1)
    if index.size and not 0 <= index.min() <= index.max() < number:
        raise IndexError(f"rows {index.min()} to {index.max()} of a source of {number} images")
    return index


def _checked_shape(shape: Shape, crop: float) -> Shape:
    channels, height, width = shape
    if channels not in COLOURS or height < 1 or width < 1:
        raise ValueError(f"images have 1 or 3 channels and some pixels, not the shape {shape}")
    if not 0 < crop <= 1:
        raise ValueError(f"crop is the share of an image that is kept, above 0 up to 1, not {crop}")
    return channels, height, width


# --- videos ------------------------------------------------------------------------------------


class VideoSource:
    """The frames of a video, every `every`-th of those that decode.

    The video is decoded once, in order, into a temporary file of scaled frames, from which rows are
    read. Seeking would need no file, but lands exactly only where a container keeps a sound index,
    and decodes up to a whole group of pictures (a dozen frames to some hundred) for each row in
    shuffled order. `close`, or the end of the process however it comes, removes the file.

    A video that is cut short or damaged keeps the frames that decode, which `skipped` says.

    Raises:
        ArtifactError: it is no video, no frame decodes, or the frames take more than `cache_mib`.
    """

    labelled = False

    def __init__(
        self,
        path: Path,
        shape: Shape = IMAGENET,
        *,
        every: int = 1,
        crop: float = CROP,
        cache_mib: int = 4096,
        progress: Progress = silent,
    ) -> None:
        if every < 1:
            raise ValueError(
                f"every is how many frames on the next one is, at least 1, not {every}"
            )
        self.path = path
        self.shape = _checked_shape(shape, crop)
        self.every = every
        self.crop = crop
        self.skipped: list[Skipped] = []
        self._frame_bytes = math.prod(shape)
        self._limit = max(1, cache_mib * 2**20 // self._frame_bytes)
        self._descriptor = _unnamed_file(path)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        try:
            self._length, self.digest = self._decode(progress)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> "VideoSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the temporary file; no row can be loaded after that."""
        self._finalizer()

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        if not self._finalizer.alive:
            raise ValueError(f"the frames of {self.path} were closed")
        index = _checked(rows, len(self))
        pixels = np.empty((len(index), *self.shape), np.uint8)
        for frame, row in zip(pixels, index, strict=True):
            # Not mapped into memory, which would count what was read as this process's own; and
            # with no position that forked workers would share.
            raw = os.pread(self._descriptor, self._frame_bytes, int(row) * self._frame_bytes)
            frame[:] = np.frombuffer(raw, np.uint8).reshape(self.shape)
        return torch.from_numpy(pixels), torch.full((len(index),), -1)

    def _decode(self, progress: Progress) -> tuple[int, str]:
        """Writes the frames; their number, and a digest of their pixels."""
        hasher = hashlib.sha256(f"video {self.shape}\n".encode())
        number = 0
        try:
            with open(self._descriptor, "wb", closefd=False) as file:
                for number, frame in enumerate(self._frames(progress), 1):
                    if number > self._limit:
                        raise self._too_long(2 * self.every)
                    pixels = np.ascontiguousarray(fit(frame, self.shape, self.crop))
                    hasher.update(pixels.data)
                    file.write(pixels.data)
        except _BrokenError as error:
            raise ArtifactError(f"{self.path} {error}; {_RECODE}") from error
        except OSError as error:
            raise ArtifactError(
                f"the frames of {self.path} cannot be kept in {_cache_folder()}: {error.strerror}; "
                "take fewer with every=, or set TMPDIR to a folder with more room"
            ) from error
        return number, hasher.hexdigest()

    def _frames(self, progress: Progress) -> Iterator[Image.Image]:
        """Every `every`-th frame that decodes; what is missing is said at the end."""
        decoded, damaged, end = 0, 0, 0.0
        with _opened(self.path) as container:
            stream = container.streams.video[0]
            stated = stream.frames  # 0 where the container does not say
            if stated // self.every > self._limit:
                raise self._too_long(math.ceil(stated / self._limit))
            for frame in _decoded(container):
                if frame is None:
                    damaged += 1
                    continue
                if decoded % self.every == 0:
                    progress(f"frames of {self.path.name}", decoded, max(stated, decoded))
                    yield frame.to_image()  # type: ignore[no-untyped-call]
                decoded += 1
                end = (frame.time or 0.0) + float(1 / (stream.average_rate or 1))
            length = (container.duration or 0) / 1_000_000
        if not decoded:
            raise ArtifactError(f"{self.path}: no frame decodes; {_RECODE}")
        # Sound often goes on a little longer than the picture.
        early = (
            f", the last at {end:.1f} of {length:.1f} s"
            if end < 0.95 * length and not stated
            else ""
        )
        if damaged or decoded < stated or early:
            of_stated = f" of {stated}" if stated else ""
            reason = f"{decoded}{of_stated} frames decode, {damaged} do not{early}"
            self.skipped.append(Skipped(self.path.name, f"is cut short or damaged: {reason}"))

    def _too_long(self, every: int) -> ArtifactError:
        return ArtifactError(
            f"{self.path} has more than the {self._limit} frames that {_cache_folder()} is given "
            f"room for; take fewer with every={every}, or allow more with cache_mib="
        )


def _decoded(container: "InputContainer") -> Iterator["VideoFrame | None"]:
    """All frames in order, `None` for each that does not decode."""
    from av.error import FFmpegError

    packets = container.demux(container.streams.video[0])
    try:
        for packet in packets:
            try:
                frames = [] if packet.is_corrupt else packet.decode()
            except FFmpegError:
                yield None
                continue
            yield from (None if frame.is_corrupt else frame for frame in frames)
            if packet.is_corrupt:
                yield None
    except FFmpegError:  # no more can be read
        yield None


_RECODE = "play it to see what it holds, record or convert it again, or give a folder of images"


@contextmanager
def _opened(path: Path) -> Iterator["InputContainer"]:
    """A video, opened; whatever it is instead is an `ArtifactError`."""
    try:
        import av
    except ImportError as error:
        raise ArtifactError(
            f"{path} is a video, and reading it needs PyAV: pip install 'edgestitch[video]'"
        ) from error
    try:
        # Some formats name other files or addresses to go on with: none but files are followed.
        container = av.open(str(path.absolute()), options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a video: {error.strerror}; {_RECODE}"
        ) from error
    with container:
        if not container.streams.video:
            raise ArtifactError(f"{path} has no video stream; {_RECODE}")
        yield container


def _unnamed_file(path: Path) -> int:
    """A temporary file that has lost its name already, so that no crash leaves it behind."""
    try:
        descriptor, name = tempfile.mkstemp(dir=_cache_folder())
        os.unlink(name)
    except OSError as error:
        raise ArtifactError(
            f"the frames of {path} need room in {_cache_folder()}: {error.strerror}; set TMPDIR "
            "to a folder that can be written"
        ) from error
    return descriptor


def _cache_folder() -> str:
    # /tmp is memory in many distributions, and so small.
    if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK):
        return "/var/tmp"
    return tempfile.gettempdir()


# --- batches -----------------------------------------------------------------------------------


def batches(
    source: Source, order: Sequence[int], batch_size: int, *, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of the rows in that order, the last batch with what is left.

    With `workers`, that many processes read ahead, two batches each. The batches are the same, and
    so is `skipped`: each brings along what its worker found broken, which is entered when the batch
    is handed out.
    """
    if batch_size < 1 or workers < 0:
        raise ValueError(f"cannot read in batches of {batch_size} with {workers} workers")
    rows = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if not workers:
        yield from map(source.load, rows)
        return
    for pixels, labels, skipped in _read_ahead(_Batches(source, rows), workers):
        source.skipped.extend(new for new in skipped if new not in source.skipped)
        yield torch.from_numpy(pixels), torch.from_numpy(labels)


def _read_ahead(dataset: "_Batches", workers: int) -> Iterator[Any]:
    """Each batch in order, read by processes.

    Not torch's DataLoader: it listens to the end of its workers (SIGCHLD), and on a CPU with AMX that
    signal ends a process in which a compiled network has used those registers.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context(
            "fork"
        ),  # shares the list of files, the file of frames
        initializer=_adopt,
        initargs=(dataset,),
    )
    ahead = 2 * workers
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads; workers use none of what these may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            pending = deque(pool.submit(_adopted, n) for n in range(min(ahead, len(dataset))))
        for following in range(ahead, ahead + len(dataset)):
            result = pending.popleft().result()
            if following < len(dataset):
                pending.append(pool.submit(_adopted, following))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


_ADOPTED: "list[_Batches]" = []
"""In a reading process: the batches that it reads."""


def _adopt(dataset: "_Batches") -> None:
    _ADOPTED.append(dataset)


def _adopted(number: int) -> Any:
    return _ADOPTED[-1][number]


class _Batches:
    """The batches of a source by number, as what can be sent from one process to another."""

    def __init__(self, source: Source, rows: list[Sequence[int]]) -> None:
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        known = len(self.source.skipped)
        pixels, labels = self.source.load(self.rows[number])
        return pixels.numpy(), labels.numpy(), self.source.skipped[known:]


# --- augmentation ------------------------------------------------------------------------------

RATIO = (3 / 4, 4 / 3)
TRIES = 10


def random_resized_crop(
    images: Tensor, generator: torch.Generator, scale: tuple[float, float] = (0.35, 1.0)
) -> Tensor:
    """A random part of each image, uint8 [B, C, H, W], scaled back to the image's size.

    The part's share of the area is uniform in `scale` and its ratio of sides log-uniform from 3/4
    to 4/3 (Szegedy et al. 2015); where ten tries do not fit in the image, the whole image is taken.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resized_crop

    height, width = images.shape[-2:]
    parts = [
        resized_crop(
            image, *box, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        for image, box in zip(
            images, _boxes(len(images), height, width, generator, scale), strict=True
        )
    ]
    return torch.stack(parts) if parts else images


def _boxes(
    number: int, height: int, width: int, generator: torch.Generator, scale: tuple[float, float]
) -> list[list[int]]:
    """Top, left, height, width for each image; always as many draws, whatever is drawn."""
    draws = torch.rand(
        number, 2 * TRIES + 2, generator=generator, device=generator.device, dtype=torch.float64
    )
    areas, ratios, place = np.split(draws.cpu().numpy(), [TRIES, 2 * TRIES], axis=1)
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    ratios = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratios
    tall, wide = np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios))
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    first = np.arange(number), fits.argmax(1)
    h = np.where(fits.any(1), tall[first], height)
    w = np.where(fits.any(1), wide[first], width)
    top, left = np.floor(place[:, 0] * (height - h + 1)), np.floor(place[:, 1] * (width - w + 1))
    boxes: list[list[int]] = np.stack([top, left, h, w], axis=1).astype(int).tolist()
    return boxes
