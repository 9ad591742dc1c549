"""What a runtime takes as an image: NumPy, torch, DLPack and CUDA arrays, checked, without a copy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .family import Family, normalized_range

if TYPE_CHECKING:
    import torch

# Of enum DLDeviceType in dlpack.h; 3 is host memory that a GPU can read.
_HOST = (1, 3)
_CUDA = 2


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What images must be: float32 of one shape, normalised."""

    shape: tuple[int, int, int, int]
    low: float
    high: float

    @classmethod
    def of(cls, family: Family, shape: tuple[int, int, int, int]) -> "Frames":
        low, high = normalized_range(family)
        # Half a range of slack: augmented or re-normalised images are legitimate, raw pixels not.
        slack = (high - low) / 2
        return cls(shape=shape, low=low - slack, high=high + slack)

    def checked(
        self, values: "np.ndarray | torch.Tensor", accelerator: str
    ) -> "np.ndarray | torch.Tensor":
        """An image that is `viewed`, as a topology takes it.

        The values of one on a GPU are not looked at, since that would stall it.

        Raises:
            ValueError: wrong shape, type, range or device, or not-a-number; the message has both sides.
        """
        if isinstance(values, np.ndarray):
            self._require_form(values.shape, str(values.dtype))
            self._require_range(values)
            return values if values.flags.c_contiguous else np.ascontiguousarray(values)
        self._require_form(tuple(values.shape), str(values.dtype).removeprefix("torch."))
        _require_device(values, accelerator)
        return values.contiguous()

    def _require_form(self, shape: tuple[int, ...], dtype: str) -> None:
        if shape == self.shape and dtype == "float32":
            return
        advice = "edgestitch.data.preprocess makes it from uint8 images"
        if dtype == "float32" and shape[1:] == self.shape[1:]:
            advice = f"edgestitch compile --batch {shape[0]} makes a deployment for that many"
        raise ValueError(
            f"the network takes float32 {list(self.shape)}, got {dtype} {list(shape)}; {advice}"
        )

    def _require_range(self, array: np.ndarray) -> None:
        low, high = array.min(), array.max()
        # Written so that not-a-number fails as well.
        if not (low >= self.low and high <= self.high):
            raise ValueError(
                f"the network takes normalised pixels, {self.low:.2f} to {self.high:.2f} with "
                f"slack, got {low:.4g} to {high:.4g}; edgestitch.data.preprocess normalises raw "
                "images"
            )


def viewed(image: Any) -> "np.ndarray | torch.Tensor":
    """The image's own memory as an array, or where it lies on a GPU as a tensor.

    Raises:
        ValueError: it is no array of any kind that is known.
    """
    if isinstance(image, np.ndarray):
        return image
    if hasattr(image, "detach"):
        return image.detach() if image.is_cuda else image.detach().numpy()  # type: ignore[no-any-return]
    if hasattr(image, "__dlpack__"):
        kind, _ = image.__dlpack_device__()
        if kind in _HOST:
            return np.from_dlpack(image)
        if kind == _CUDA:
            from torch.utils.dlpack import from_dlpack

            return from_dlpack(image)
        raise ValueError(f"an image lies in host memory or on a CUDA device, not on {kind!r}")
    if hasattr(image, "__cuda_array_interface__"):
        import torch

        return torch.as_tensor(image, device="cuda")
    raise ValueError(
        "an image is a NumPy array, a torch tensor, or has __dlpack__ or __cuda_array_interface__; "
        f"got {type(image).__name__}"
    )


def _require_device(image: "torch.Tensor", accelerator: str) -> None:
    import torch

    if accelerator != "cuda":
        raise ValueError(
            f"the image lies on {image.device}, and this deployment computes on the CPU; give it in "
            "host memory (image.cpu())"
        )
    if image.device.index != torch.cuda.current_device():
        raise ValueError(
            f"the image lies on {image.device}, and this deployment is on "
            f"cuda:{torch.cuda.current_device()}; move it there"
        )


def like(image: Any, logits: "np.ndarray | torch.Tensor") -> Any:
    """Logits in the kind of the image: a torch tensor for one, else an array.

    Of any image on a GPU they are a torch tensor there.
    """
    if not isinstance(logits, np.ndarray) or not hasattr(image, "detach"):
        return logits
    import torch

    return torch.from_numpy(logits).to(image.device)
