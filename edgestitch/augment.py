"""Random changes of training images; all that is random is drawn from one generator."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import CutMix, MixUp

from .images import random_resized_crop
from .recipe import Training


def augment(pixels: Tensor, training: Training, random: torch.Generator) -> Tensor:
    """Each image of uint8 [B, C, H, W] cropped, mirrored, shifted and partly blanked at random."""
    batch, _, height, width = pixels.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch,), generator=random).to(pixels.device)

    def chance(probability: float) -> Tensor:
        return (torch.rand(batch, generator=random) < probability).to(pixels.device)

    if training.crop < 1:
        pixels = random_resized_crop(pixels, random, scale=(training.crop, 1.0))
    if training.flip:
        pixels = torch.where(chance(0.5).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    if training.shift:
        s = training.shift
        padded = pad(pixels, (s, s, s, s))
        rows = draw(2 * s + 1)[:, None] + torch.arange(height, device=pixels.device)
        columns = draw(2 * s + 1)[:, None] + torch.arange(width, device=pixels.device)
        index = torch.arange(batch, device=pixels.device)[:, None, None]
        pixels = padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if training.erase:
        top, left = draw(height), draw(width)
        tall, wide = draw(height // 2) + 1, draw(width // 2) + 1
        y = torch.arange(height, device=pixels.device)
        x = torch.arange(width, device=pixels.device)
        inside_y = (y >= top[:, None]) & (y < (top + tall)[:, None])
        inside_x = (x >= left[:, None]) & (x < (left + wide)[:, None])
        inside = inside_y[:, :, None] & inside_x[:, None, :] & chance(training.erase)[:, None, None]
        pixels = pixels.masked_fill(inside[:, None], 0)
    return pixels


def mix(
    images: Tensor, labels: Tensor, training: Training, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Images mixed in pairs by mixup or CutMix, and their labels as probabilities [B, classes].

    Without either the labels stay numbers. Drawn from torch's own random state.
    """
    mixers = [MixUp(alpha=training.mixup, num_classes=num_classes)] if training.mixup else []
    if training.cutmix:
        mixers.append(CutMix(alpha=training.cutmix, num_classes=num_classes))
    if not mixers:
        return images, labels
    if (labels < 0).any():  # unlabelled: mixed all the same, only the teacher says what they show
        mixed, _ = _choose(mixers)(images, torch.zeros_like(labels))
        return mixed, labels
    mixed, soft = _choose(mixers)(images, labels)
    return mixed, soft


def _choose(mixers: "list[MixUp | CutMix]") -> "MixUp | CutMix":
    return mixers[int(torch.randint(len(mixers), ()))]
