"""The training loop that anchors and fine-tuning share.

Everything random of a step is drawn from the seed, the stage, the epoch, the step and the shard, so
a training that was killed goes on from its last checkpoint to the same weights, and several
processes that divide the shards of a step compute what one would.
"""

import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .artifact import Value, load_tensors, save_tensors, sha256
from .augment import augment, mix
from .batchnorm import freeze_statistics
from .data import preprocess
from .distributed import ALONE, Workers
from .errors import MismatchError
from .family import Family
from .images import Source, batches
from .progress import Log, Progress, silent, unlogged
from .recipe import Finetuning, Training
from .stitch import StitchingLayer

CHECKPOINT = "calibration checkpoint"
CHECKPOINT_VERSION = 2
CHECKPOINT_S = 600.0
"""A checkpoint is written after each epoch, and within an epoch that long after the last."""
LOG_STEPS = 50

Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Of normalised images, labels (numbers, or probabilities where images are mixed), and a generator
of what else is drawn."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What trainings of one calibration have in common."""

    family: Family
    source: Source
    seed: int
    work: Path
    device: torch.device
    workers: Workers = ALONE
    parts: int = 1
    """Into how many parts a batch is divided at least; processes divide them among each other."""
    readers: int = 0
    """Processes that read images ahead."""
    progress: Progress = silent
    log: Log = unlogged

    def fit(
        self,
        module: nn.Module,
        loss: Loss,
        training: Training,
        stage: str,
        conditions: Mapping[str, Value],
    ) -> None:
        """Trains a module in place, or loads it where a checkpoint says that it is done.

        Raises:
            MismatchError: the checkpoint was made under other conditions.
            ValueError: there are fewer images than a batch, or the training diverges.
        """
        shards = self.workers.size * math.ceil(self.parts / self.workers.size)
        size = training.batch_size // shards
        num_steps = len(self.source) // training.batch_size
        if num_steps == 0 or size == 0:
            raise ValueError(
                f"{stage}: a batch of {training.batch_size} is more than the {len(self.source)} images"
                if size
                else f"{stage}: a batch of {training.batch_size} cannot be divided by {shards}"
            )
        state = _State(module, training, self.device)
        path = self.work / f"{stage.replace(' ', '-')}.safetensors"
        key = self._key({**conditions, "shards": shards})
        epoch, step = state.resume(path, key)
        saved = time.monotonic()
        while epoch < training.epochs:
            module.train()
            if training.frozen_statistics:
                freeze_statistics(module)
            for pixels_and_labels in self._steps(stage, epoch, step, num_steps, shards, size):
                self.progress(stage, epoch * num_steps + step, training.epochs * num_steps)
                rate = learning_rate(training, epoch + step / num_steps)
                total = state.step(
                    rate,
                    self._losses(loss, training, stage, (epoch, step), shards, pixels_and_labels),
                    self.workers,
                )
                step += 1
                if step % LOG_STEPS == 0 or step == num_steps:
                    self._report(stage, epoch * num_steps + step, total, rate)
                late = time.monotonic() - saved > CHECKPOINT_S
                # No two clocks agree, but all processes must save at the same step.
                if step < num_steps and self.workers.any(late, self.device):
                    self._save(state, path, key, epoch, step)
                    saved = time.monotonic()
            epoch, step = epoch + 1, 0
            self._save(state, path, key, epoch, step)
            saved = time.monotonic()
        state.finish()
        module.train().eval()  # through train(): LeViT forgets what it remembers of earlier weights

    def _steps(
        self, stage: str, epoch: int, first: int, num_steps: int, shards: int, size: int
    ) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """For each step that is left of an epoch, the shards of this process."""
        random = torch.Generator().manual_seed(_seed(self.seed, stage, epoch))
        order = torch.randperm(len(self.source), generator=random).tolist()
        mine = self.workers.share(shards)
        rows: list[int] = []
        for step in range(first, num_steps):
            for shard in mine:
                start = (step * shards + shard) * size
                rows += order[start : start + size]
        stream = batches(self.source, rows, size, workers=self.readers)
        for _ in range(first, num_steps):
            yield [next(stream) for _ in mine]

    def _losses(
        self,
        loss: Loss,
        training: Training,
        stage: str,
        when: tuple[int, int],
        shards: int,
        data: Sequence[tuple[Tensor, Tensor]],
    ) -> Iterator[Tensor]:
        """The part of each shard of this process in the loss of a step."""
        for shard, (pixels, labels) in zip(self.workers.share(shards), data, strict=True):
            seed = _seed(self.seed, stage, *when, shard)
            random = torch.Generator().manual_seed(seed)
            _seed_global(seed, self.device)
            changed = augment(pixels.to(self.device), training, random)
            images = preprocess(changed, mean=self.family.mean, std=self.family.std)
            images, targets = mix(images, labels.to(self.device), training, self.family.num_classes)
            yield loss(images, targets, random) / shards

    def _report(self, stage: str, step: int, total: Tensor, rate: float) -> None:
        if self.workers.size > 1:
            self.workers.add([total])
        value = float(total)
        if not math.isfinite(value):
            raise ValueError(
                f"{stage} diverged at step {step}: the loss is {value}; lower learning_rate, or set clip"
            )
        self.log(stage, step, {"loss": value, "learning_rate": rate})

    def _save(self, state: "_State", path: Path, key: str, epoch: int, step: int) -> None:
        state.average_buffers(self.workers)
        if self.workers.first:
            state.save(path, key, epoch, step)
        self.workers.wait()

    def _key(self, conditions: Mapping[str, Value | int]) -> str:
        """What a checkpoint must have been made from to be resumed."""
        content = {
            "family": self.family.digest,
            "seed": self.seed,
            "data": self.source.digest,
            **{name: msgspec.to_builtins(value) for name, value in conditions.items()},
        }
        return sha256(msgspec.json.encode(content, order="sorted"))


class _State:
    """All that changes while a module is trained."""

    def __init__(self, module: nn.Module, training: Training, device: torch.device) -> None:
        self.module = module
        self.training = training
        self.device = device
        self.optimizer = _optimizer(module, training)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self.average: AveragedModel | None = None
        if training.ema:
            average = get_ema_multi_avg_fn(training.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(module, multi_avg_fn=average, use_buffers=True)

    def step(self, rate: float, losses: Iterator[Tensor], workers: Workers) -> Tensor:
        """One step of the optimiser over the shards of a batch; the loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.training.precision
        ]
        while True:
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                value = next(losses, None)
            if value is None:
                break
            self.scaler.scale(value).backward()  # type: ignore[no-untyped-call]
            total += value.detach()
        if workers.size > 1:
            _add_gradients(self.module, workers)
        if self.training.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.training.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.module)
        return total

    def average_buffers(self, workers: Workers) -> None:
        """Makes running statistics, those of averaged weights too, the mean over all processes."""
        if workers.size > 1:
            modules = [self.module] if self.average is None else [self.module, self.average.module]
            buffers = [b for m in modules for b in m.buffers() if b.dtype != torch.bool]
            workers.add(buffers)
            for buffer in buffers:
                buffer.copy_(buffer / workers.size)  # counters are whole: rounded down

    def finish(self) -> None:
        """Puts the averaged weights in the place of the last ones."""
        if self.average is not None:
            self.module.load_state_dict(self.average.module.state_dict())

    def save(self, path: Path, key: str, epoch: int, step: int) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{n}": tensor for n, tensor in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{field}": value
                for field, value in state.items()
                if value is not None
            }
        metadata = {
            "key": key,
            "epoch": str(epoch),
            "step": str(step),
            "scaler": msgspec.json.encode(self.scaler.state_dict()).decode(),
        }
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        save_tensors(CHECKPOINT, CHECKPOINT_VERSION, metadata, arrays, path)

    def resume(self, path: Path, key: str) -> tuple[int, int]:
        """Loads a checkpoint if there is one; the epoch and the step to go on with."""
        if not path.exists():
            return 0, 0
        metadata, tensors = load_tensors(CHECKPOINT, CHECKPOINT_VERSION, path)
        if metadata["key"] != key:
            raise MismatchError(
                f"{path} is a checkpoint of another recipe, seed, data set or number of processes; "
                "remove it, or give another folder with --work"
            )
        arrays = {name: torch.from_numpy(array) for name, array in tensors.items()}
        self.module.load_state_dict(_under("module.", arrays))
        if self.average is not None:
            self.average.load_state_dict(_under("average.", arrays))
        state = self.optimizer.state_dict()
        for name, tensor in _under("optimizer.", arrays).items():
            index, field = name.split(".")
            state["state"].setdefault(int(index), {})[field] = tensor
        self.optimizer.load_state_dict(state)
        self.scaler.load_state_dict(msgspec.json.decode(metadata["scaler"]))
        return int(metadata["epoch"]), int(metadata["step"])


def learning_rate(training: Training, epoch: float) -> float:
    """Linear warm-up, then half a cosine down to zero; `epoch` counts with its fraction."""
    if epoch < training.warmup_epochs:
        return training.learning_rate * min(1.0, (epoch + 1e-3) / training.warmup_epochs)
    left = training.epochs - training.warmup_epochs
    return (
        training.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (epoch - training.warmup_epochs) / left))
    )


def _optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    scale = training.stitch_rate if isinstance(training, Finetuning) else 1.0
    stitching = [
        parameter
        for layer in module.modules()
        if isinstance(layer, StitchingLayer)
        for parameter in layer.parameters()
        if parameter.requires_grad
    ]
    ours = {id(parameter) for parameter in stitching}
    others = [p for p in module.parameters() if p.requires_grad and id(p) not in ours]
    groups = [{"params": others, "scale": 1.0}, {"params": stitching, "scale": scale}]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=1.0, momentum=0.9, nesterov=True, weight_decay=training.weight_decay
        )
    return torch.optim.AdamW(groups, weight_decay=training.weight_decay)


def _add_gradients(module: nn.Module, workers: Workers) -> None:
    """Sums gradients over all processes; what none of them used keeps none, as in one process."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    used = torch.tensor([float(p.grad is not None) for p in parameters])
    used = used.to(parameters[0].device)
    workers.add([used])
    members = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
    for parameter in members:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in members if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    workers.add([flat])
    for gradient, part in zip(
        gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))


def _under(prefix: str, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in arrays.items() if n.startswith(prefix)}


def _seed_global(seed: int, device: torch.device) -> None:
    """Seeds what dropout and stochastic depth draw from.

    Not by `torch.manual_seed`: where CUDA is built in but absent that notes a stack trace at each
    call, for later.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _seed(seed: int, *what: str | int) -> int:
    return zlib.crc32(" ".join(map(str, (seed, *what))).encode())
