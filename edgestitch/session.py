"""A runtime at work on labelled images while its budget changes, frame by frame, and what it did."""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from .accuracy import wilson
from .data import LabelledImages, preprocess
from .progress import Progress, silent
from .report import RunRow
from .runlog import Recorder
from .runtime import Runtime
from .schedule import Budget, Plan


def run_session(
    runtime: Runtime,
    data: LabelledImages,
    budgets: Sequence[Budget],
    *,
    recorder: Recorder | None = None,
    progress: Progress = silent,
) -> tuple[RunRow, ...]:
    """Runs all images under each budget in turn, on one runtime, switching in place.

    Every budget sees every image, so the rows can be compared; images are normalised beforehand. A
    `recorder` gets every frame.

    Raises:
        ValueError: the images do not fit the network, or are fewer than one batch.
    """
    frames, labels = batches(runtime, data)
    return tuple(
        _run_budget(runtime, budget, frames, labels, index, len(budgets), recorder, progress)
        for index, budget in enumerate(budgets)
    )


def budgets_of(plan: Plan) -> tuple[Budget, ...]:
    """Those that a plan was made for; of one for whatever may come, what each resident just keeps."""
    asked = tuple(choice.budget for choice in plan.choices)
    return asked or tuple(Budget(latency_ms=c.latency_ms) for c in plan.resident)


def batches(runtime: Runtime, data: LabelledImages) -> tuple[list[np.ndarray], np.ndarray]:
    """Images as the runtime takes them, normalised, and their labels, [number, batch].

    Raises:
        ValueError: the images do not fit the network, or are fewer than one batch.
    """
    family = runtime.deployment.manifest.family
    batch = runtime.input_shape[0]
    if len(data) < batch:
        raise ValueError(f"a batch of {batch} is more than the {len(data)} images")
    if data.images.shape[1:] != family.input_shape:
        raise ValueError(
            f"the data has images of {list(data.images.shape[1:])}, the network takes "
            f"{list(family.input_shape)}; give others with --images"
        )
    images = preprocess(data.images, mean=family.mean, std=family.std)
    frames = np.split(images[: len(images) // batch * batch], len(images) // batch)
    return frames, data.labels[: len(frames) * batch].reshape(-1, batch)


def _run_budget(
    runtime: Runtime,
    budget: Budget,
    frames: list[np.ndarray],
    labels: np.ndarray,
    index: int,
    number: int,
    recorder: Recorder | None,
    progress: Progress,
) -> RunRow:
    before = time.perf_counter_ns()
    runtime.budget = budget
    switch_us = (time.perf_counter_ns() - before) / 1e3
    correct = 0
    latencies: list[float] = []
    met: list[bool] = []
    ran: Counter[str] = Counter()
    for frame, label in zip(frames, labels, strict=True):
        result = runtime.infer(frame)
        if recorder is not None:
            recorder.frame(result)
        latencies.append(result.latency_ms)
        if result.met is not None:
            met.append(result.met)
        ran[result.topology] += 1
        correct += int((result.output.argmax(1) == label).sum())
        if len(latencies) % 50 == 0:
            progress("run", index * len(frames) + len(latencies), number * len(frames))
    low, high = wilson(correct, labels.size)
    return RunRow(
        budget=budget,
        topologies=dict(ran.most_common()),
        frames=len(frames),
        median_ms=float(np.median(latencies)),
        p99_ms=float(np.quantile(latencies, 0.99, method="higher")),
        top1=100 * correct / labels.size,
        top1_low=100 * low,
        top1_high=100 * high,
        hit_rate=float(np.mean(met)) if met else None,
        switch_us=switch_us,
        first_ms=latencies[0],
    )
