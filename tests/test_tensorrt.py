"""The TensorRT backend: its loader and settings on a fake, its conversion on the real compiler.

Without a GPU nothing can be run. What can be shown is that every operator of the networks has a
converter, and that TensorRT-RTX, whose builder needs no GPU, makes engines of their segments.
"""

import inspect
import logging
import os
import sys
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgestitch.artifact import load, save, sha256
from edgestitch.backends import Compiled, Request, tensorrt, trt_compile
from edgestitch.backends.chain import DTYPES, chained, in_precision
from edgestitch.backends.tensorrt import EngineFile
from edgestitch.backends.trt_compile import VARIANTS, build_without_gpu, without_gpu
from edgestitch.cut import cut_topologies
from edgestitch.errors import ArtifactError, CompileError, DeviceError
from edgestitch.network import StitchNetwork, build_network
from edgestitch.program import compile_segments, example_images
from edgestitch.recipe import load_family
from tests import fake_tensorrt

BACKEND = tensorrt.BACKEND
EVERY_SETTING = sorted({n for names in fake_tensorrt.ACCEPTED.values() for n in names.split()})
TOPOLOGIES = ("a:0:3", "a:0:1+b:1:3", "a:0:2+b:1:3")


# --- on a fake ----------------------------------------------------------------------------------


@pytest.fixture(params=["2.8.0", "2.14.0"])
def release(request, monkeypatch, tmp_path):
    """A fake torch-tensorrt of that release over a fake TensorRT, on a GPU that is the host."""

    def version(distribution: str) -> str:
        if distribution == "torch-tensorrt":
            return str(request.param)
        raise PackageNotFoundError(distribution)

    fake = fake_tensorrt.TorchTensorRT(request.param)
    for name, module in fake.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(
        trt_compile,
        "metadata",
        SimpleNamespace(version=version, PackageNotFoundError=PackageNotFoundError),
    )
    monkeypatch.setattr(trt_compile, "_PACKAGES", {"torch-tensorrt": fake_tensorrt.__name__})
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(
        torch.cuda,
        "current_stream",
        lambda device=None: SimpleNamespace(cuda_stream=fake_tensorrt.STREAM),
    )
    monkeypatch.setattr(tensorrt, "captured", chained)
    fake_tensorrt.ENGINES.clear()
    return fake


def compiled_toy(folder: Path, network: StitchNetwork, precision: str = "fp32") -> Compiled:
    """The toy network's topologies, compiled into a folder."""
    plan = cut_topologies(network.family, TOPOLOGIES)
    compile_segments(network, plan, BACKEND, folder, precision=precision)
    fake_tensorrt.ENGINES.clear()  # that were read back
    return Compiled(
        folder=folder,
        chains=plan.chains,
        atoms=plan.atoms,
        precision=precision,
        threads=1,
        accelerator="cpu",
        input_shape=(1, *network.family.input_shape),
        network=lambda: network,
    )


@pytest.mark.parametrize("precision", BACKEND.precisions)
def test_topologies_compute_what_eager_does(release, toy_network, tmp_path, precision):
    resident = BACKEND.load(compiled_toy(tmp_path, toy_network, precision))
    images = example_images(toy_network.family, 1)
    tolerance = {"fp32": 1e-6, "fp16": 0.02, "bf16": 0.1}[precision]
    loaded = {topology: resident(topology) for topology in TOPOLOGIES}
    for topology in (*TOPOLOGIES, *TOPOLOGIES):
        found = loaded[topology].run(images)
        with torch.inference_mode():
            expected = toy_network.assemble(topology)(torch.from_numpy(images)).numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_there_is_one_engine_per_segment_and_one_context_per_segment_and_topology(
    release, toy_network, tmp_path
):
    compiled = compiled_toy(tmp_path, toy_network)
    resident = BACKEND.load(compiled)
    assert fake_tensorrt.ENGINES == []  # nothing is read before a topology asks for it
    resident(TOPOLOGIES[0])
    assert len(fake_tensorrt.ENGINES) == len(compiled.chains[TOPOLOGIES[0]])
    for topology in TOPOLOGIES[1:]:
        resident(topology)
    assert len(fake_tensorrt.ENGINES) == len(compiled.atoms)
    contexts = [context for engine in fake_tensorrt.ENGINES for context in engine.contexts]
    assert len(contexts) == sum(map(len, compiled.chains.values()))


def test_all_contexts_share_one_workspace_of_the_largest_need(release, toy_network, tmp_path):
    compiled = compiled_toy(tmp_path, toy_network)
    resident = BACKEND.load(compiled)
    resident(TOPOLOGIES[0])  # its workspace must do for what comes later
    for topology in TOPOLOGIES[1:]:
        resident(topology)
    engines = fake_tensorrt.ENGINES
    (memory,) = {context.memory for engine in engines for context in engine.contexts}
    assert memory is not None
    needs = {engine.device_memory_size_v2 for engine in engines}
    assert memory[1] == max(needs) > min(needs)


def test_each_segment_reads_where_the_one_before_it_wrote(release, toy_network, tmp_path):
    compiled = compiled_toy(tmp_path, toy_network)
    BACKEND.load(compiled)(TOPOLOGIES[0]).run(example_images(toy_network.family, 1))
    calls = [engine.contexts[0].calls[0] for engine in fake_tensorrt.ENGINES]
    assert len(calls) == len(compiled.chains[TOPOLOGIES[0]])
    for earlier, later in pairwise(calls):
        assert later["input"] == earlier["output0"]


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_a_damaged_engine_is_refused_before_tensorrt_sees_it(release, toy_network, tmp_path):
    compiled = compiled_toy(tmp_path, toy_network)
    file = tmp_path / f"{compiled.chains[TOPOLOGIES[0]][-1]}.engine"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"a:head.engine is damaged.*compile it again"):
        BACKEND.load(compiled)(TOPOLOGIES[0])
    file.unlink()
    with pytest.raises(ArtifactError, match="cannot read"):
        BACKEND.load(compiled)(TOPOLOGIES[0])


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_an_engine_of_another_tensorrt_is_refused_with_both_versions(
    release, toy_network, tmp_path, monkeypatch
):
    compiled = compiled_toy(tmp_path, toy_network)
    monkeypatch.setattr(fake_tensorrt, "__version__", "10.13.2")
    with pytest.raises(CompileError, match=r"10\.3\.0.*10\.13\.2.*compile it again"):
        BACKEND.load(compiled)


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_what_tensorrt_says_of_an_engine_that_it_refuses_is_in_the_error(
    release, toy_network, tmp_path
):
    compiled = compiled_toy(tmp_path, toy_network)
    segment = compiled.chains[TOPOLOGIES[0]][-1]
    (tmp_path / f"{segment}.engine").write_bytes(b"")
    rewrite(tmp_path / f"{segment}.json", engine=sha256(b""))
    with pytest.raises(CompileError, match=r"a:head.*magicTag.*compile it again"):
        BACKEND.load(compiled)(TOPOLOGIES[0])


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_an_engine_that_needs_more_workspace_than_it_said_is_refused(
    release, toy_network, tmp_path
):
    compiled = compiled_toy(tmp_path, toy_network)
    for side_file in tmp_path.glob("*.json"):
        rewrite(side_file, workspace_bytes=1)
    with pytest.raises(CompileError, match="bytes of workspace"):
        BACKEND.load(compiled)(TOPOLOGIES[0])


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_what_tensorrt_says_of_a_call_that_it_refuses_is_in_the_error(
    release, toy_network, tmp_path, monkeypatch
):
    compiled = compiled_toy(tmp_path, toy_network)
    monkeypatch.setattr(
        fake_tensorrt.IExecutionContext, "set_device_memory", lambda context, memory, size: None
    )
    resident = BACKEND.load(compiled)(TOPOLOGIES[0])
    with pytest.raises(CompileError, match=r"cannot run a:stem.*bytes of device memory were not"):
        resident.run(example_images(toy_network.family, 1))


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_features_of_another_shape_are_refused_before_they_are_read(release, toy_network, tmp_path):
    resident = BACKEND.load(compiled_toy(tmp_path, toy_network))(TOPOLOGIES[0])
    with pytest.raises(ValueError, match=r"a:stem.* takes .*, not"):
        resident.run(example_images(toy_network.family, 2))


def test_a_segment_is_computed_in_the_modules_own_types(release, toy_network, tmp_path):
    compiled_toy(tmp_path, toy_network, "fp16")
    for call in release.calls:
        assert call.get("use_explicit_typing", True)
        assert "enabled_precisions" not in call
        assert call["require_full_compilation"]
        assert call["immutable_weights"]
    explicit = {"use_explicit_typing"} & set(release.calls[0])
    assert bool(explicit) == (release.release == "2.8.0")


def test_every_variant_is_compiled_with_the_settings_that_the_release_has(release, tmp_path):
    for variant in VARIANTS:
        BACKEND.compile(linear(tmp_path / "x:0", variant))
    has = "decompose_attention" in release.accepted
    # The fake TensorRT has no layer for attention: the first variant is the second there.
    wanted = [True, True, True] if has else [None, None, None]
    assert [call.get("decompose_attention") for call in release.calls] == wanted
    assert [call["use_fp32_acc"] for call in release.calls] == [False, False, True]


def test_the_engine_cache_of_torch_tensorrt_is_never_used(release, tmp_path):
    BACKEND.compile(linear(tmp_path / "x:0"))
    caches = {name for name in release.calls[0] if "cache" in name} - {"timing_cache_path"}
    assert not any(release.calls[0][name] for name in caches)
    assert caches == {"cache_built_engines", "reuse_cached_engines"} & set(release.accepted)


@given(accepted=st.sets(st.sampled_from(EVERY_SETTING)), variant=st.sampled_from(VARIANTS))
def test_a_release_is_given_no_setting_that_it_does_not_have(accepted, variant):
    def chosen(names: Collection[str]) -> dict[str, object]:
        return trt_compile.settings(
            names, variant, rtx=False, attention_layer=True, timing_cache=Path("timing")
        )

    everything = chosen(EVERY_SETTING)
    assert chosen(accepted) == {n: v for n, v in everything.items() if n in accepted}


def test_attention_is_taken_apart_only_where_tensorrt_has_no_layer_for_it():
    def decomposed(variant: str, attention_layer: bool) -> object:
        chosen = trt_compile.settings(
            fake_tensorrt.ACCEPTED["2.14.0"].split(),
            variant,
            rtx=False,
            attention_layer=attention_layer,
            timing_cache=Path("timing"),
        )
        return chosen["decompose_attention"]

    assert [decomposed(variant, True) for variant in VARIANTS] == [False, True, True]
    assert [decomposed(variant, False) for variant in VARIANTS] == [True, True, True]


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_attention_without_a_converter_is_taken_apart_unasked(release, tmp_path, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.INetworkDefinition, "add_attention", 1, raising=False)
    release.unsupported = release.decomposed = {"aten.scaled_dot_product_attention"}
    BACKEND.compile(request(Attention(), torch.zeros(1, 4, 8), tmp_path / "x:0"))
    assert [call["decompose_attention"] for call in release.calls] == [False, True]


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_operators_without_a_converter_are_named_and_leave_no_file(release, tmp_path):
    release.unsupported = {"aten.linear"}
    with pytest.raises(CompileError, match=r"x:0: .*no converter for aten\.linear\.default; use"):
        BACKEND.compile(linear(tmp_path / "x:0"))
    assert list(tmp_path.glob("x:0*")) == []


def test_why_tensorrt_makes_no_engine_is_in_the_error_and_nowhere_else(release, tmp_path, caplog):
    release.refusal = "no implementation for node x"
    with pytest.raises(CompileError, match=r"x:0: .*no implementation for node x; use another"):
        BACKEND.compile(linear(tmp_path / "x:0"))
    assert "no implementation" not in caplog.text


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_what_cannot_be_exported_is_an_error_that_names_the_segment(release, tmp_path):
    class Undecided(nn.Linear):
        def forward(self, value):
            return value if value.sum().item() > 0 else -value

    with pytest.raises(CompileError, match="export x:0"):
        BACKEND.compile(request(Undecided(2, 2), torch.zeros(1, 2), tmp_path / "x:0"))


def test_timings_are_kept_between_compilations(release, tmp_path):
    with trt_compile._timing_cache() as private:
        assert not private.exists()
        private.write_bytes(b"timings")
    with trt_compile._timing_cache() as private:
        assert private.read_bytes() == b"timings"
    assert not private.exists()


@pytest.mark.parametrize("release", ["2.14.0"], indirect=True)
def test_without_a_gpu_only_tensorrt_rtx_can_build(release):
    with pytest.raises(DeviceError, match=r"tensorrt-rtx"):
        build_without_gpu(nn.Linear(2, 2), torch.zeros(1, 2))


def test_a_package_that_is_missing_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(trt_compile, "_PACKAGES", {})
    assert "torch-tensorrt is not installed; pip install" in str(trt_compile.missing())
    monkeypatch.setattr(trt_compile, "_PACKAGES", {"pytest": "no_such_tensorrt"})
    assert "no_such_tensorrt cannot be loaded" in str(trt_compile.missing())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_backend_says_so_first():
    assert "CUDA" in str(BACKEND.unavailable())


def rewrite(side_file: Path, **changes: object) -> None:
    """The same file, whole, that says something else."""
    save(msgspec.structs.replace(load(EngineFile, side_file), **changes), side_file)


class Attention(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)

    def forward(self, x):
        x = super().forward(x)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


def request(module: nn.Module, example: torch.Tensor, path: Path, variant: str = "") -> Request:
    return Request(module=module, example=example, path=path, precision="fp32", variant=variant)


def linear(path: Path, variant: str = "") -> Request:
    return request(nn.Linear(2, 3), torch.zeros(1, 2), path, variant)


# --- on the real compiler ------------------------------------------------------------------------

real = pytest.mark.skipif(
    trt_compile.package() != "tensorrt_rtx" or torch.cuda.is_available(),
    reason="only torch-tensorrt-rtx builds engines without a GPU; "
    "pip install 'edgestitch[tensorrt-rtx]', on a machine without one",
)
SHIPPED = (
    "deit-ti-s-b",
    "swin-ti-s-b",
    "resnet18-50",
    "resnet18-swin-ti",
    "levit-192-256",
    "efficientnet-lite0-1-2",
)


class Bessel(nn.Linear):
    def forward(self, x):
        return torch.special.bessel_j0(super().forward(x))


def network_of(name: str) -> StitchNetwork:
    torch.manual_seed(0)
    return build_network(load_family(name)).eval()


@pytest.fixture(scope="module", params=["toy", *SHIPPED])
def network(request):
    return network_of(request.param)


def shortest_stitched(network: StitchNetwork) -> str:
    stitched = [t.name for t in network.topologies if "+" in t.name]
    return min(stitched, key=lambda name: len(network.family.atoms(name)))


def segments(network: StitchNetwork) -> dict[str, tuple[tuple[str, ...], torch.Tensor]]:
    """One segment of each kind of the shortest stitched topology, with an example of its input."""
    atoms = network.family.atoms(shortest_stitched(network))
    joint = next(i for i, atom in enumerate(atoms) if "+" in atom)
    found, value = {}, torch.zeros(1, *network.family.input_shape)
    places = {
        "stem": (0, 1),
        "block": (1, 2),
        "stitching layer": (joint, joint + 1),
        "fused run": (joint + 1, joint + 3),
        "head": (len(atoms) - 1, len(atoms)),
    }
    for index, atom in enumerate(atoms):
        for kind, (start, stop) in places.items():
            if start == index:
                found[kind] = (atoms[start:stop], value)
        with torch.inference_mode():
            value = network.chain([atom])(value)
    return found


def in_type(module: nn.Module, precision: str) -> nn.Module:
    return in_precision(module, torch.device("cpu"), DTYPES[precision])


@real
@pytest.mark.slow
def test_every_operator_of_whole_and_stitched_topologies_converts(network):
    images = torch.zeros(1, *network.family.input_shape)
    for topology in (network.topologies[0].name, shortest_stitched(network)):
        module = in_type(network.assemble(topology), "fp16")
        found = build_without_gpu(module, images.half(), build=False)
        assert found.unsupported == ()
        assert found.ops == found.supported > 10
        assert found.engines == 1


@real
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_tensorrt_builds_an_engine_of_every_kind_of_segment(network, precision):
    for kind, (atoms, example) in segments(network).items():
        module = in_type(network.chain(atoms), precision)
        found = build_without_gpu(module, example.to(DTYPES[precision]))
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        assert found.engine_bytes is not None, (kind, found)
        assert found.engine_bytes > 0.8 * weights, kind


@real
def test_an_operator_without_a_converter_is_named():
    found = build_without_gpu(Bessel(4, 4), torch.zeros(1, 4))
    assert found.unsupported == ("aten.special_bessel_j0.default",)
    assert (found.ops, found.supported, found.engines) == (2, 1, 0)
    assert found.engine_bytes is None
    with without_gpu(), pytest.raises(CompileError, match=r"x:0: .*special_bessel_j0.*use another"):
        trt_compile.build_engine(Bessel(4, 4), torch.zeros(1, 4), name="x:0")


@real
@pytest.mark.parametrize("precision", BACKEND.precisions)
def test_every_variant_of_attention_converts_in_every_precision(toy_network, precision):
    atoms, example = segments(toy_network)["block"]
    block, example = in_type(toy_network.chain(atoms), precision), example.to(DTYPES[precision])
    whole = build_without_gpu(block, example)
    apart = build_without_gpu(block, example, decompose_attention=True)
    exact = build_without_gpu(block, example, decompose_attention=True, use_fp32_acc=True)
    assert (whole.variant, apart.variant, exact.variant) == VARIANTS
    assert exact.ops >= apart.ops > whole.ops
    assert (exact.ops > apart.ops) == (precision == "fp16")
    assert all(found.engine_bytes for found in (whole, apart, exact))


@real
def test_a_network_computes_the_same_after_it_was_converted():
    network = network_of("levit-192-256")  # it keeps what it has looked up once, exported or not
    atoms, example = segments(network)["block"]
    block = network.chain(atoms)
    example = torch.rand_like(example)
    with torch.inference_mode():
        before = block(example)
    build_without_gpu(block, example)
    with torch.inference_mode():
        assert torch.equal(block(example), before)


@real
def test_torch_is_as_it_was_after_a_conversion():
    def state() -> object:
        logger = logging.getLogger("torch_tensorrt")
        functions = (
            dict(vars(torch.cuda)),
            os.path.isfile,
            hasattr(torch._C, "_CudaDeviceProperties"),
        )
        return functions, logging.root.manager.disable, logger.propagate, logger.handlers

    before = state()
    found = build_without_gpu(nn.Linear(2, 2), torch.zeros(1, 2))
    assert state() == before
    assert not torch.cuda.is_available()
    assert set(found.versions) == {"tensorrt_rtx", "torch-tensorrt-rtx"}


@real
def test_the_settings_are_still_those_of_the_release_that_is_installed():
    with without_gpu():
        torch_tensorrt, _ = trt_compile._torch_tensorrt()
    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    accepted = set(inspect.signature(convert).parameters)
    ours = trt_compile.settings(
        fake_tensorrt.ACCEPTED["2.14.0"].split(),
        "",
        rtx=False,
        attention_layer=True,
        timing_cache=Path("timing"),
    )
    assert set(ours) <= accepted
    assert "use_explicit_typing" not in accepted
