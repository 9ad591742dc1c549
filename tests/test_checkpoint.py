"""Checkpoints of the authors' code: which names become which, what is refused, what is written."""

import json
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

from edgestitch import anchor as anchors
from edgestitch.artifact import load_tensors, sha256
from edgestitch.checkpoint import import_checkpoint
from edgestitch.cli import cli
from edgestitch.errors import ArtifactError
from edgestitch.family import Anchor, Family, Stitching
from edgestitch.network import KIND, VERSION, StitchNetwork, join, load_network, save_network
from tests.reference import load_reference, state_dict, value, write_checkpoint


@pytest.fixture(scope="module")
def tiny():
    """Two anchors of four blocks, joined both ways."""
    return load_reference("tiny-deit3-4-4")


@pytest.fixture
def state(tiny):
    return state_dict(tiny.keys)


@pytest.fixture
def path(tmp_path, state):
    return write_checkpoint(tmp_path / "released.pth", state)


@pytest.fixture
def network(tiny, path):
    return import_checkpoint(tiny.family, path)


def logits(network: StitchNetwork) -> dict[str, Tensor]:
    images = torch.ones(1, *network.family.input_shape)
    with torch.inference_mode():
        return {t.name: network(images, t) for t in network.family.topologies}


# --- names -------------------------------------------------------------------------------------


def resnet(name: str = "r") -> Anchor:
    return Anchor(
        name=name,
        model="resnet18",
        depth=7,
        stages=(1, 3, 2, 1),
        options={"layers": (1, 3, 2, 1), "channels": (8, 8, 16, 16)},
    )


def swin(name: str, *depths: int) -> Anchor:
    return Anchor(
        name=name,
        model="swin_tiny_patch4_window7_224",
        depth=sum(depths),
        stages=depths,
        options={"depths": depths, "embed_dim": 8, "num_heads": (1, 1, 2, 2), "window_size": 2},
    )


def levit(name: str, *widths: int) -> Anchor:
    return Anchor(
        name=name,
        model="levit_128s",
        depth=5,
        stages=(2, 1, 2),
        options={"embed_dim": widths, "depth": (2, 1, 2), "num_heads": (1, 1, 2), "key_dim": 8},
    )


def family_of(*family_anchors: Anchor, size: int = 32, **stitching: object) -> Family:
    return Family(
        name="small",
        anchors=family_anchors,
        stitching=Stitching(rule="staged", **stitching),  # type: ignore[arg-type]
        input_shape=(3, size, size),
        num_classes=5,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def authors_resnet(name: str) -> str:
    return name


def authors_swin(name: str) -> str:
    name = re.sub(
        r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name
    )
    return name.replace("head.fc.", "head.")


# Of a LeViT with 2, 1 and 2 blocks: attention and MLP of each in turn, two entries between stages.
LEVIT = {
    "stages.0.blocks.0": 0,
    "stages.0.blocks.1": 2,
    "stages.1.downsample": 4,
    "stages.1.blocks.0": 6,
    "stages.2.downsample": 8,
    "stages.2.blocks.0": 10,
    "stages.2.blocks.1": 12,
}


def authors_levit(name: str) -> str:
    found = re.match(r"(stages\.\d\.\w+(?:\.\d)?)\.(attn|mlp|attn_downsample)\.", name)
    if found:
        entry = LEVIT[found[1]] + (found[2] == "mlp")
        inside = "" if found[2] == "attn_downsample" else "m."
        name = f"blocks.{entry}.{inside}{name[found.end() :]}"
    name = re.sub(r"^stem\.conv(\d)", lambda m: f"patch_embed.{2 * int(m[1]) - 2}", name)
    name = name.replace(".ln.", ".1.").replace("m.ln1.", "m.0.").replace("m.ln2.", "m.2.")
    return re.sub(r"linear\.", "l." if name.startswith("head") else "c.", name)


def test_the_authors_entries_of_levit_begin_as_their_code_has_them():
    """The inverse that these tests use is itself right: these names are from the authors' file."""
    name = "stages.1.downsample.attn_downsample.q.ln.linear.weight"
    assert authors_levit(name) == "blocks.4.q.1.c.weight"
    name = "stages.2.blocks.1.mlp.ln2.bn.running_var"
    assert authors_levit(name) == "blocks.13.m.2.bn.running_var"


def some_network(family: Family) -> tuple[StitchNetwork, dict[str, nn.Module]]:
    """A network in reference mode of which no two tensors are alike, and its anchors."""
    family = family.in_mode("reference")
    models = {a.name: anchors.build(a, family) for a in family.anchors}
    network = join(family, models)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(value(name, tuple(tensor.shape))))
    return network.train().eval(), models


def authors_state(
    network: StitchNetwork,
    models: dict[str, nn.Module],
    names: list[Callable[[str], str]],
) -> dict[str, Tensor]:
    """A network's tensors as the authors' code names and shapes them."""
    state = {
        f"anchors.{position}.{name(key)}": tensor
        for position, (name, model) in enumerate(zip(names, models.values(), strict=True))
        for key, tensor in model.state_dict().items()
    }
    for layer, places in network.family.layer_places.items():
        tensors = network.atoms[layer].state_dict()
        convolution = network.layouts[layer.partition(":")[0]] == "nchw"
        prefix = f"stitch_layers.{'.'.join(map(str, places))}.transform"
        if convolution:
            tensors["weight"] = tensors["weight"][:, :, None, None]
        state |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
    return state


@pytest.mark.parametrize(
    ("family", "names"),
    [
        pytest.param(
            family_of(swin("t", 1, 1, 2, 1), swin("s", 1, 1, 4, 1), stages=(2,)),
            [authors_swin] * 2,
            id="swin",
        ),
        pytest.param(
            family_of(resnet(), swin("t", 1, 3, 4, 1), stages=(1, 2)),
            [authors_resnet, authors_swin],
            id="resnet-swin",
        ),
        pytest.param(
            family_of(levit("a", 16, 24, 32), levit("b", 24, 32, 48), size=64, stages=(0, 2)),
            [authors_levit] * 2,
            id="levit",
        ),
    ],
)
def test_every_tensor_of_the_authors_comes_back_under_timms_name(tmp_path, family, names):
    network, models = some_network(family)
    path = write_checkpoint(tmp_path / "c.pth", authors_state(network, models, names))
    imported = import_checkpoint(family, path)
    assert imported.digest == network.digest
    assert all(torch.equal(y, logits(imported)[name]) for name, y in logits(network).items())


@pytest.mark.parametrize(
    ("family", "names", "added"),
    [
        pytest.param(
            family_of(resnet(), resnet("q"), stages=(1,)),
            [authors_resnet] * 2,
            "anchors.1.layer1.0.bn1.aux_bn.0.weight",
            id="split-batch-norm",
        ),
        pytest.param(
            family_of(swin("t", 1, 1, 2, 1)),
            [authors_swin],
            "anchors.0.layers.0.blocks.0.attn.relative_position_index",
            id="indices-of-swin",
        ),
        pytest.param(
            family_of(levit("a", 16, 24, 32), size=64),
            [authors_levit],
            "anchors.0.blocks.0.m.attention_bias_idxs",
            id="indices-of-levit",
        ),
    ],
)
def test_what_inference_needs_not_or_timm_computes_is_passed_over(tmp_path, family, names, added):
    network, models = some_network(family)
    state = authors_state(network, models, names)
    path = write_checkpoint(tmp_path / "c.pth", {**state, added: torch.full((3,), -1)})
    assert import_checkpoint(family, path).digest == network.digest


# --- files -------------------------------------------------------------------------------------


def test_the_network_is_in_reference_and_in_evaluation_mode(network):
    assert network.mode == "reference"
    assert not network.training


def test_the_random_state_is_as_before(tiny, path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    import_checkpoint(tiny.family, path)
    assert torch.equal(torch.rand(4), expected)


def settings_of_swin(monkeypatch: pytest.MonkeyPatch) -> object:
    """What Swin's code stores: a dictionary of a class that need not be installed here."""

    class CfgNode(dict):  # type: ignore[type-arg]
        __module__ = "yacs.config"
        __qualname__ = "CfgNode"

    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return CfgNode(MODEL=CfgNode(NAME="stitch"), LR=1e-3)


def as_bare(state, path, _):
    torch.save(state, path)


def as_parallel(state, path, _):
    torch.save({"model": {f"module.{key}": tensor for key, tensor in state.items()}}, path)


def as_timm_saves(state, path, _):
    torch.save({"epoch": 29, "arch": "resnet50", "state_dict": state, "metric": 77.5}, path)


def as_swin_saves(state, path, monkeypatch):
    content = {"model": state, "max_accuracy": np.float64(83.2)}
    torch.save({**content, "config": settings_of_swin(monkeypatch)}, path)
    monkeypatch.undo()


def as_before_zip(state, path, _):
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)


def as_safetensors(state, path, _):
    save_file(state, path)


@pytest.mark.parametrize(
    "write",
    [as_bare, as_parallel, as_timm_saves, as_swin_saves, as_before_zip, as_safetensors],
)
def test_every_form_gives_the_same_network(tiny, state, network, tmp_path, monkeypatch, write):
    write(state, tmp_path / "other.pth", monkeypatch)
    assert import_checkpoint(tiny.family, tmp_path / "other.pth").digest == network.digest


# --- low rank ----------------------------------------------------------------------------------


def test_low_rank_parts_are_folded_into_their_layer(state, network):
    parts = {k: state[f"stitch_layers.1.2.transform.{k}"] for k in ("weight", "lora_A", "lora_B")}
    tokens = torch.randn(20, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w, a, b = (part.double() for part in parts.values())
    unfolded = tokens @ w.T + tokens @ a.T @ b.T / len(a)
    folded = tokens @ network.atoms["b:3+a:3"].weight.double().T
    assert (folded - unfolded).abs().max() <= 1e-6 * unfolded.abs().max()
    assert (tokens @ w.T - unfolded).abs().max() > 1e-3 * unfolded.abs().max()


def test_a_layer_without_low_rank_parts_is_taken_as_it_is(tiny, state, tmp_path):
    state = {key: tensor for key, tensor in state.items() if "lora" not in key}
    path = write_checkpoint(tmp_path / "c.pth", state)
    layer = import_checkpoint(tiny.family, path).atoms["b:3+a:3"].state_dict()
    assert torch.equal(layer["weight"], state["stitch_layers.1.2.transform.weight"])


def test_low_rank_parts_of_another_shape_are_refused_with_all_shapes(tiny, state, tmp_path):
    state["stitch_layers.0.1.transform.lora_B"] = torch.ones(32, 3)
    path = write_checkpoint(tmp_path / "c.pth", state)
    message = r"stitch_layers\.0\.1\.transform .* weight \[32, 16\], lora_B \[32, 3\], lora_A \[4, "
    with pytest.raises(ArtifactError, match=message):
        import_checkpoint(tiny.family, path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e38])
def test_low_rank_parts_that_cannot_be_folded_are_refused(tiny, state, tmp_path, number):
    state["stitch_layers.0.1.transform.lora_A"][0, 0] = number
    state["stitch_layers.0.1.transform.lora_B"][0, 0] = 100
    path = write_checkpoint(tmp_path / "c.pth", state)
    with pytest.raises(ArtifactError, match=r"transform maps tokens otherwise once"):
        import_checkpoint(tiny.family, path)


# --- what does not fit -------------------------------------------------------------------------


def refusal(family: Family, state: dict[str, Tensor], folder: Path) -> str:
    path = write_checkpoint(folder / "c.pth", state)
    with pytest.raises(ArtifactError) as refused:
        import_checkpoint(family, path)
    message = str(refused.value)
    assert message.startswith(f"{path} does not fit {family.name}: ")
    assert "\n" not in message
    return message


def test_missing_tensors_are_counted_and_ten_of_them_listed(tiny, state, tmp_path):
    kept = {key: tensor for key, tensor in state.items() if ".norm1." not in key}
    message = refusal(tiny.family, kept, tmp_path)
    assert "16 tensors are missing (anchors.0.blocks.0.norm1.weight, anchors.0.b" in message
    assert message.endswith("anchors.1.blocks.0.norm1.bias, ...)")
    assert message.count("norm1") == 10


def test_foreign_tensors_are_listed_by_their_names_in_the_file(tiny, state, tmp_path):
    foreign = {"optimizer.step": torch.zeros(()), "anchors.2.norm.weight": torch.zeros(16)}
    message = refusal(tiny.family, {**state, **foreign}, tmp_path)
    assert message.endswith("2 are not the family's (optimizer.step, anchors.2.norm.weight)")


def test_tensors_of_another_shape_are_listed_with_both(tiny, state, tmp_path):
    state["anchors.0.head.weight"] = torch.zeros(21841, 16)
    state["anchors.1.blocks.0.gamma_1"] = torch.zeros(32, dtype=torch.int64)
    message = refusal(tiny.family, state, tmp_path)
    assert message.endswith(
        "2 have another shape (anchors.0.head.weight 21841x16 not 10x16, "
        "anchors.1.blocks.0.gamma_1 32 of torch.int64 not 32)"
    )


def test_a_weight_under_two_names_is_refused(tiny, state, tmp_path):
    state["anchors.0.blocks.0.ls1.gamma"] = torch.zeros(16)
    message = refusal(tiny.family, state, tmp_path)
    assert message.endswith("1 are not the family's (anchors.0.blocks.0.ls1.gamma)")


def test_the_unused_layer_may_be_there_and_no_other(tiny, state, tmp_path):
    assert "stitch_layers.0.3.transform.weight" in state
    state["stitch_layers.1.3.transform.weight"] = torch.zeros(16, 32)
    message = refusal(tiny.family, state, tmp_path)
    assert message.endswith("1 are not the family's (stitch_layers.1.3.transform.weight)")


def test_another_architecture_is_named(tiny, tmp_path):
    family = family_of(swin("t", 1, 1, 2, 1), swin("s", 1, 1, 4, 1))
    network, models = some_network(family)
    state = authors_state(network, models, [authors_swin] * 2)
    message = refusal(tiny.family, state, tmp_path)
    assert "it holds 2 SwinTransformer, the family has 2 VisionTransformer; give the fam" in message


def test_a_plain_network_is_no_stitched_one(tiny, tmp_path):
    plain = anchors.build(tiny.family.anchors[0], tiny.family).state_dict()
    assert "it holds no anchors, the family has 2 Vi" in refusal(tiny.family, plain, tmp_path)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_checkpoint_is_refused_by_name_and_runs_nothing(tiny, state, tmp_path):
    path, mark = tmp_path / "c.pth", tmp_path / "was-run"
    torch.save({"model": state, "args": Hostile(mark)}, path)
    with pytest.raises(ArtifactError, match=r"c\.pth asks for posix\.system, which weights do not"):
        import_checkpoint(tiny.family, path)
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_checkpoint_cut_short_is_refused_by_name(tiny, path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ArtifactError, match=r"released\.pth is no file of weights or is cut short"):
        import_checkpoint(tiny.family, path)


def test_a_folder_and_a_missing_file_are_refused_by_name(tiny, tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*: Is a directory"):
        import_checkpoint(tiny.family, tmp_path)
    with pytest.raises(ArtifactError, match=r"cannot read .*none\.pth: No such file"):
        import_checkpoint(tiny.family, tmp_path / "none.pth")


def test_a_file_without_weights_is_refused_saying_what_it_holds(tiny, tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 1e-4}}, tmp_path / "c.pth")
    with pytest.raises(ArtifactError, match=r"c\.pth holds no state dict, .* 'epoch' is a int"):
        import_checkpoint(tiny.family, tmp_path / "c.pth")


def test_a_network_of_ours_is_not_imported_again(tiny, network, tmp_path):
    save_network(network, tmp_path / "ours.safetensors")
    with pytest.raises(ArtifactError, match="is a stitch network of edgestitch already; use it"):
        import_checkpoint(tiny.family, tmp_path / "ours.safetensors")


# --- the verb ----------------------------------------------------------------------------------

RECIPE = """
[family]
name = "tiny-deit3-4-4"
input_shape = [3, 32, 32]
num_classes = 10
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
stitching = { rule = "two-way" }

[[family.anchors]]
name = "a"
model = "deit3_small_patch16_224"
depth = 4
options = { depth = 4, embed_dim = 16, num_heads = 2 }

[[family.anchors]]
name = "b"
model = "deit3_small_patch16_224"
depth = 4
options = { depth = 4, embed_dim = 32, num_heads = 4 }
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return str(tmp_path / "tiny.toml")


def test_the_verb_writes_the_network_and_where_it_came_from(recipe, path, network, tmp_path):
    out = tmp_path / "made" / "tiny.safetensors"
    done = CliRunner().invoke(cli, ["import", recipe, str(path), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    source = {"source": "released.pth", "source_sha256": sha256(path.read_bytes())}
    assert json.loads(done.stdout) == {
        "family": "tiny-deit3-4-4",
        "mode": "reference",
        "topologies": 14,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "digest": network.digest,
        **source,
    }
    metadata, _ = load_tensors(KIND, VERSION, out)
    assert source.items() <= metadata.items()
    assert load_network(out).digest == network.digest


def test_the_verb_says_what_it_imported(recipe, path, network, tmp_path):
    out = tmp_path / "tiny.safetensors"
    done = CliRunner().invoke(cli, ["import", recipe, str(path), "--out", str(out)])
    assert done.stdout.splitlines() == [
        "family     tiny-deit3-4-4",
        "mode       reference",
        "topologies 14",
        "params     105 k",
        f"digest     {network.digest}",
        f"wrote {out}",
    ]


def test_the_verb_writes_nothing_where_the_family_is_another(path, tmp_path):
    out = tmp_path / "toy.safetensors"
    done = CliRunner().invoke(cli, ["import", "toy", str(path), "--out", str(out)])
    assert done.exit_code == 1
    assert "released.pth does not fit toy: its 2 VisionTransformer are not th" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()
