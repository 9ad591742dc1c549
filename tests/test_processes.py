"""Several processes calibrate what one does: the same weights, judged the same, written once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from edgestitch import artifact, train
from edgestitch.anchor import build
from edgestitch.artifact import load, load_tensors
from edgestitch.calibrate import Calibration, Splits, _Session, calibrate, in_memory
from edgestitch.data import toy_images
from edgestitch.distributed import ALONE, Workers, started_by_torchrun, workers
from edgestitch.family import Anchor, Family, Stitching
from edgestitch.images import FolderSource
from edgestitch.network import load_network
from edgestitch.recipe import Finetuning, Initialization, Recipe, Training, load_recipe

replace = msgspec.structs.replace
CASES = ("toy", "everything", "batchnorm", "broken")


def toy(**finetuning: Any) -> Recipe:
    recipe = load_recipe("toy")
    assert recipe.finetune is not None
    few = {"epochs": 1, "batch_size": 32}
    return replace(
        recipe,
        anchors={name: replace(training, **few) for name, training in recipe.anchors.items()},
        initialize=Initialization(images=64),
        finetune=replace(recipe.finetune, **few, topologies_per_step=2, **finetuning),
    )


def resnets(path: Path) -> tuple[Recipe, Splits]:
    """Two ResNets and 32 x 32 images of four classes, two of which cannot be read, in a folder."""
    options = {"layers": (1, 2, 2, 1)}
    family = Family(
        name="resnets",
        anchors=tuple(
            Anchor(
                name=name,
                model="resnet18",
                depth=6,
                stages=(1, 2, 2, 1),
                options={**options, "channels": channels},
            )
            for name, channels in (("a", (4, 8, 8, 8)), ("b", (8, 8, 16, 16)))
        ),
        stitching=Stitching(rule="staged"),
        input_shape=(3, 32, 32),
        num_classes=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    training = Training(epochs=1, batch_size=16, learning_rate=1e-2)
    recipe = Recipe(
        family=family,
        anchors={"a": training, "b": training},
        initialize=Initialization(images=32),
        finetune=Finetuning(epochs=1, batch_size=8, topologies_per_step=2, ema=0.5),
    )
    if not path.exists():
        random = np.random.default_rng(0)
        for index in range(44):
            pixels = random.integers(0, 120, (32, 32, 3), np.uint8)
            pixels[16 * (index % 4 // 2) :, 16 * (index % 2) :] += 100
            file = path / f"class{index % 4}" / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
        for name in ("class1/21.png", "class1/25.png"):  # neighbours, in the middle
            (path / name).write_bytes(b"no image")
    source = [FolderSource(path, (3, 32, 32), labelled=True) for _ in range(2)]
    return recipe, Splits(*source)


def case(name: str, folder: Path) -> tuple[Recipe, Splits]:
    if name in ("batchnorm", "broken"):
        recipe, splits = resnets(folder / "images")
        if name == "broken":  # nothing is trained, so that nothing but judging reads
            recipe = replace(recipe, finetune=None, anchors={})
        return recipe, splits
    splits = in_memory(toy_images(96, seed=0), toy_images(300, seed=1))
    if name == "toy":
        return toy(), splits
    options = {"rank": 2, "ema": 0.9, "clip": 0.5, "mixup": 0.8, "cutmix": 1.0, "optimizer": "sgd"}
    return toy(**options, sampling="grouped", group_gap_gmacs=1e-5), splits


def work(name: str, folder: Path, out: str, rank: int) -> dict[str, Any]:
    """Calibrates, and tells what this process drew and wrote."""
    recipe, splits = case(name, folder)
    drawn: list[str] = []
    written: list[str] = []
    sampler, replacing = _Session.sampler, artifact.replacing

    def telling(self: Any, *arguments: Any) -> Any:
        draw = sampler(self, *arguments)

        def told(random: torch.Generator) -> str:
            drawn.append(draw(random))
            return drawn[-1]

        return told

    def counted(path: Path) -> Any:
        written.append(path.name)
        return replacing(path)

    weights = {}
    if not recipe.anchors:
        weights = {a: folder / f"{a}.safetensors" for a in ("a", "b")}
    here = folder / out / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Session, "sampler", telling)
        patch.setattr(artifact, "replacing", counted)
        # The clock of one process alone says that a checkpoint is due.
        patch.setattr(train, "CHECKPOINT_S", 0.0 if rank else 600.0)
        result = calibrate(
            recipe, splits, here / "work", here / "out.safetensors", weights=weights, device="cpu"
        )
    return {"network": result.network, "drawn": drawn, "written": written}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """For each case: what one process told, and what each of two told; and where all that is."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("distributed")
    recipe, _ = resnets(folder / "images")
    torch.manual_seed(5)
    for anchor in recipe.family.anchors:
        model = build(anchor, recipe.family)
        save_file(model.state_dict(), folder / f"{anchor.name}.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.test_processes", str(folder)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        alone = {name: work(name, folder, "alone", 0) for name in CASES}
        for process in processes:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()
            process.wait()
    told = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return folder, {name: (alone[name], [rank[name] for rank in told]) for name in CASES}


def calibrations(folder: Path, name: str) -> list[Calibration]:
    files = [folder / out / name / "out.calibration.json" for out in ("alone", "together")]
    return [load(Calibration, file) for file in files]


@pytest.mark.parametrize("name", ["toy", "everything", "broken"])
def test_two_processes_reach_the_weights_of_one(runs, name):
    folder, _ = runs
    alone, together = (
        load_network(folder / out / name / "out.safetensors").state_dict()
        for out in ("alone", "together")
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["toy", "everything", "broken"])
def test_two_processes_judge_as_one(runs, name):
    alone, together = calibrations(runs[0], name)
    assert together.steps == alone.steps
    assert together.skipped == alone.skipped


@pytest.mark.parametrize("name", CASES)
def test_every_process_ends_with_the_same_weights(runs, name):
    _, (first, second) = runs[1][name]
    assert first["network"] == second["network"]
    assert calibrations(runs[0], name)[1].network == first["network"]


@pytest.mark.parametrize("name", ["toy", "everything", "batchnorm"])
def test_each_process_draws_the_topologies_of_its_own_shards(runs, name):
    alone, (first, second) = runs[1][name]
    assert first["drawn"] != second["drawn"]
    assert alone["drawn"][::2] == first["drawn"]
    assert alone["drawn"][1::2] == second["drawn"]


@pytest.mark.parametrize("name", CASES)
def test_only_the_first_process_writes(runs, name):
    _, (first, second) = runs[1][name]
    assert {"out.safetensors", "out.calibration.json"} <= set(first["written"])
    assert second["written"] == []


def test_a_checkpoint_that_one_process_finds_due_is_written_by_the_first(runs):
    alone, (first, _) = runs[1]["toy"]
    assert alone["written"].count("fine-tuning.safetensors") == 1
    assert first["written"].count("fine-tuning.safetensors") == 3


def test_images_that_cannot_be_read_count_once_wherever_they_are_read(runs):
    folder, _ = runs
    for calibration in calibrations(folder, "broken"):
        # Least squares over the first 32 images of 44 meet both, and so does judging.
        assert calibration.skipped == 4
        hits = [step.initialized * 42 / 100 for step in calibration.steps]
        assert hits == pytest.approx([round(hit) for hit in hits])


def test_batch_normalisation_changes_nothing_but_its_statistics(runs):
    """One process updates them with every shard, two average what each of them has at the end."""
    folder, _ = runs
    alone, together = (
        load_tensors(
            train.CHECKPOINT,
            train.CHECKPOINT_VERSION,
            folder / out / "batchnorm" / "work" / "anchor-b.safetensors",
        )[1]
        for out in ("alone", "together")
    )
    modules = [n for n in alone if n.startswith("module.")]
    statistics = {n for n in modules if "running" in n or "num_batches" in n}
    assert statistics
    for name in set(modules) - statistics:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=1e-4)
    assert all(np.isfinite(together[name]).all() for name in statistics)


# --- one process -----------------------------------------------------------------------------


def test_alone_a_process_has_all_and_changes_nothing():
    tensor = torch.ones(3)
    ALONE.add([tensor])
    ALONE.wait()
    assert tensor.tolist() == [1, 1, 1]
    assert ALONE.first
    assert list(ALONE.share(3)) == [0, 1, 2]
    assert [ALONE.any(here, torch.device("cpu")) for here in (True, False)] == [True, False]


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not started_by_torchrun()
    with workers(torch.device("cpu")) as found:
        assert found == ALONE


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [0, 1, 4, 10])
def test_shares_are_all_and_none_twice(size, number):
    shares = [list(Workers(rank, size).share(number)) for rank in range(size)]
    assert sorted(index for share in shares for index in share) == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, this = Path(sys.argv[1]), int(os.environ["RANK"])
    result = {name: work(name, place, "together", this) for name in CASES}
    (place / f"{this}.json").write_text(json.dumps(result))
