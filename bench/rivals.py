"""What the run side by side compares: edgestitch, and what one would use instead of it.

Each is built once into a folder, and then loaded in one of three ways: as calls whose latency is
taken, as switchers from one topology to another, and as all that is in memory.
"""

import hashlib
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
from measuring import MIB, versions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgestitch import Family
    from edgestitch.network import StitchNetwork

# PyTorch, OpenVINO and edgestitch are imported where they are used: memory is measured in processes
# that have nothing but what is measured in them.

ONNX_RUNTIME = "ONNX Runtime"
PACKAGES = ("edgestitch", "torch", "timm", "openvino", "onnxruntime", "onnx", "tensorrt")
PACKAGES += ("torch-tensorrt", "triton", "numpy")
ENGINES = {"cpu": "openvino", "cuda": "tensorrt"}
OURS = {"cpu": ("openvino", "eager"), "cuda": ("tensorrt", "cudagraph")}
TITLES = {"openvino": "OpenVINO", "tensorrt": "TensorRT"}
WARM_UP = 3
"""Calls of a topology before it is left for another."""

Run = Callable[[np.ndarray], np.ndarray]
"""One image [1, C, H, W] in host memory to logits [1, classes] in host memory."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes that build and measure are told."""

    family: str
    anchors: tuple[str, ...]
    device: str
    accelerator: str
    precision: str
    threads: int
    work: str
    names: tuple[str, ...]
    """Topologies that are resident; cheapest first."""
    rounds: int = 40
    switch_rounds: int = 10

    @property
    def subject(self) -> "Family":
        from subjects import family_of

        return family_of(self.family, self.anchors)

    @property
    def folder(self) -> Path:
        """Of what is compiled; it depends on all that this does."""
        told = json.dumps([self.names, self.device, self.threads, versions(PACKAGES)])
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        name = "-".join([Path(self.family).stem, *self.anchors, self.precision, digest])
        return Path(self.work) / name

    @property
    def records(self) -> Path:
        """Of what was measured."""
        return Path(self.work) / "records" / self.folder.name

    @property
    def engine(self) -> str:
        """What runs one engine a topology here."""
        return ENGINES[self.accelerator]

    @property
    def ours(self) -> tuple[str, ...]:
        """Backends of edgestitch; the first one is what the others are compared with."""
        return OURS[self.accelerator]

    def torch_device(self) -> "torch.device":
        import torch

        torch.set_num_threads(self.threads)
        return torch.device(self.accelerator)

    def dtype(self) -> "torch.dtype":
        import torch

        return {"fp32": torch.float32, "fp16": torch.float16}[self.precision]


# --- what is built, once -----------------------------------------------------------------------


def build_weights(job: Job) -> dict[str, Any]:
    """The weights as each of the others reads them: all, by atom, and by topology."""
    import torch
    from subjects import network_of, random_frames

    from edgestitch.network import save_network

    network = network_of(job.subject)
    for folder in ("atoms", "whole"):
        (job.folder / folder).mkdir(parents=True, exist_ok=True)
    save_network(network, job.folder / "network.safetensors")
    for name, atom in network.atoms.items():
        torch.save(atom.state_dict(), job.folder / "atoms" / f"{name}.pt")
    for name in job.names:
        torch.save(network.assemble(name).state_dict(), job.folder / "whole" / f"{name}.pt")
    np.save(job.folder / "image.npy", random_frames(network.family, 1)[0])
    used = {atom for name in job.names for atom in network.family.atoms(name)}
    width = 2 if job.precision == "fp16" else 4

    def size(atoms: Iterable[str]) -> float:
        return sum(p.numel() for a in atoms for p in network.atoms[a].parameters()) * width / MIB

    return {
        "names": job.names,
        "union_mib": size(used),
        "apart_mib": sum(size(network.family.atoms(name)) for name in job.names),
    }


def loaded(job: Job) -> tuple[dict[str, "nn.Module"], "StitchNetwork"]:
    """The models of timm by anchor, and the stitched network; they share their weights."""
    from edgestitch.network import join, load_network
    from edgestitch.pretrained import build_anchors

    models, _ = build_anchors(job.subject)
    network = join(job.subject, models)
    network.load_state_dict(load_network(job.folder / "network.safetensors").state_dict())
    for model in models.values():
        model.eval().requires_grad_(False)
    return models, network.eval().requires_grad_(False)


def module_of(
    job: Job, models: Mapping[str, "nn.Module"], network: "StitchNetwork", name: str
) -> "nn.Module":
    """The model of timm where the topology is a whole anchor, else the assembled one."""
    wholes = {job.subject.whole(anchor).name: model for anchor, model in models.items()}
    return wholes[name] if name in wholes else network.assemble(name)


def build_engines(job: Job) -> dict[str, Any]:
    """One engine a topology, and one of a stem, which brings the library in."""
    import torch

    from edgestitch import backends
    from edgestitch.cut import cut_topologies
    from edgestitch.program import compile_segments

    backend = _available(job.engine)
    models, network = loaded(job)
    built: dict[str, float] = {}
    image = torch.from_numpy(image_of(job))
    for name in ("stem", *job.names):
        folder, start = job.folder / "engines" / name, time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        if job.accelerator == "cuda":
            if name != "stem":
                network.to(job.torch_device())
                cut = cut_topologies(job.subject, [name])
                compile_segments(network, cut, backend, folder, precision=job.precision)
        else:
            stem = network.atoms[f"{job.anchors[0]}:stem"]
            module = stem if name == "stem" else module_of(job, models, network, name)
            path = folder / "engine"
            backend.compile(
                backends.Request(module=module, example=image, path=path, precision=job.precision)
            )
        built[name] = time.perf_counter() - start
    if job.accelerator == "cpu":
        core = openvino_core(job, cached=True)
        for name in job.names:  # fills OpenVINO's cache
            openvino_run(job, core, name)
    return {"built_s": built}


def build_onnx(job: Job) -> dict[str, Any]:
    """One ONNX file a topology."""
    import onnxruntime  # noqa: F401  # before minutes go into what nothing here can run
    import torch

    models, network = loaded(job)
    built: dict[str, float] = {}
    (job.folder / "onnx").mkdir(parents=True, exist_ok=True)
    stem = network.atoms[f"{job.anchors[0]}:stem"]
    for name in ("stem", *job.names):
        start, path = time.perf_counter(), job.folder / "onnx" / f"{name}.onnx"
        module = stem if name == "stem" else module_of(job, models, network, name)
        image = torch.from_numpy(image_of(job))
        torch.onnx.export(module, (image,), path, dynamo=True, verbose=False)
        built[name] = time.perf_counter() - start
    return {"built_s": built}


def build_deployment(job: Job, backend: str) -> dict[str, Any]:
    """A deployment of all topologies, and one of the toy family, which brings the library in."""
    from subjects import deploy, network_of

    from edgestitch.device import resolve
    from edgestitch.network import load_network

    _available(backend)
    start = time.perf_counter()
    for network, names, folder in (
        (load_network(job.folder / "network.safetensors"), job.names, "deployment"),
        (network_of("toy"), ("a:0:3",), "toy"),
    ):
        if not (job.folder / f"{folder}-{backend}" / "manifest.json").is_file():
            deploy(
                network,
                names,
                job.folder / f"{folder}-{backend}",
                resolve(job.device),
                backend=backend,
                precision=job.precision,
            )
    return {"built_s": time.perf_counter() - start}


def _available(name: str) -> Any:
    from edgestitch import backends

    backend = backends.backend(name)
    if (why := backend.unavailable()) is not None:
        raise RuntimeError(why)
    return backend


def image_of(job: Job) -> np.ndarray:
    image: np.ndarray = np.load(job.folder / "image.npy")
    return image


# --- one engine or session a topology, as its own users call it -----------------------------------


def openvino_core(job: Job, *, cached: bool = False) -> Any:
    import openvino

    core = openvino.Core()
    if cached:
        core.set_property({"CACHE_DIR": str(job.folder / "openvino-cache")})
    return core


def openvino_run(job: Job, core: Any, name: str) -> Run:
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
    }
    # By its path and not by a model that was read before: so OpenVINO's cache saves the reading.
    compiled = core.compile_model(job.folder / "engines" / name / "engine.xml", "CPU", settings)
    request = compiled.create_infer_request()
    entry, result = request.get_input_tensor().data, request.get_output_tensor().data

    def run(image: np.ndarray) -> np.ndarray:
        np.copyto(entry, image)
        request.infer(share_outputs=True)
        logits: np.ndarray = result.copy()
        return logits

    return run


def engine_loader(job: Job) -> Callable[[str], Run]:
    """Makes the engine of a topology callable, by name."""
    if job.accelerator == "cpu":
        return partial(openvino_run, job, openvino_core(job))
    return partial(_program_run, job)


def _program_run(job: Job, name: str) -> Run:
    """A topology that was compiled whole, by a backend for GPUs."""
    from edgestitch.cut import cut_topologies
    from edgestitch.device import resolve
    from edgestitch.network import load_network
    from edgestitch.program import load_program

    def network() -> "StitchNetwork":
        return load_network(job.folder / "network.safetensors").to(job.torch_device())

    program = load_program(
        cut_topologies(job.subject, [name]),
        _available(job.engine),
        job.folder / "engines" / name,
        job.subject,
        network,
        resolve(job.device),
        precision=job.precision,
        batch=1,
    )
    return program.load(name).run


def session_loader(job: Job) -> Callable[[str], Run]:
    """Makes the ONNX Runtime session of a topology callable, by name."""
    import onnxruntime

    provider = "CPUExecutionProvider" if job.accelerator == "cpu" else "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this onnxruntime has no {provider}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    # Its threads would otherwise spin on into the sample of what comes next.
    options.add_session_config_entry("session.force_spinning_stop", "1")

    def load(name: str) -> Run:
        path = str(job.folder / "onnx" / f"{name}.onnx")
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
        entry = session.get_inputs()[0].name
        return lambda image: session.run(None, {entry: image})[0]  # type: ignore[no-any-return]

    return load


# --- PyTorch, and edgestitch ---------------------------------------------------------------------


def ours(backend: str) -> str:
    return f"edgestitch, {backend}"


def placed(job: Job, modules: Mapping[str, "nn.Module"]) -> dict[str, "nn.Module"]:
    """On the device, in the precision; on a CPU they are themselves, with the weights they share."""
    if job.accelerator == "cpu":
        return dict(modules)
    import copy

    device, dtype = job.torch_device(), job.dtype()
    return {name: copy.deepcopy(module).to(device, dtype) for name, module in modules.items()}


def walk(module: "nn.Module", image: np.ndarray) -> np.ndarray:
    import torch

    weight = next(module.parameters())
    with torch.inference_mode():
        given = torch.from_numpy(image).to(weight.device, weight.dtype)
        logits: np.ndarray = module(given).float().cpu().numpy()
    return logits


def torch_compiled(job: Job, modules: Mapping[str, "nn.Module"], name: str) -> Run:
    import torch

    module: Any = modules[name]
    mode = "reduce-overhead" if job.accelerator == "cuda" else "default"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(module, mode=mode)
        device, dtype = next(module.parameters()).device, next(module.parameters()).dtype

        def run(image: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                given = torch.from_numpy(image).to(device, dtype)
                logits: np.ndarray = compiled(given).float().cpu().numpy()
            return logits

        for _ in range(WARM_UP):  # a graph is captured in the second
            run(image_of(job))
    return run


def resident(job: Job, backend: str) -> Callable[[str], Run]:
    """Topologies of one runtime; a call switches to its own, and that is part of it."""
    from edgestitch import Runtime

    runtime = Runtime(job.folder / f"deployment-{backend}", rebuild=False)

    def load(name: str) -> Run:
        def run(image: np.ndarray) -> np.ndarray:
            runtime.switch(name)
            return runtime(image)

        return run

    return load


# --- switching ---------------------------------------------------------------------------------


class Switcher(Protocol):
    """One way to have another network run from now on."""

    def first_result(self, before: str, after: str, image: np.ndarray) -> dict[str, float]:
        """With `before` in use: milliseconds from the change to the first result of `after`.

        `first_ms`, `steady_ms` of later calls of the same, and what else it can tell.
        """


class InProcess:
    """A switcher that stays in this process: `change` brings in a topology, `run` calls it."""

    def __init__(self, change: Callable[[str], None], run: Run) -> None:
        self._change, self._run = change, run

    def first_result(self, before: str, after: str, image: np.ndarray) -> dict[str, float]:
        clock = time.perf_counter_ns
        self._change(before)
        for _ in range(WARM_UP):
            self._run(image)
        start = clock()
        self._change(after)
        self._run(image)
        first = clock() - start
        for _ in range(WARM_UP):
            start = clock()
            self._run(image)
            steady = clock() - start
        return {"first_ms": first / 1e6, "steady_ms": steady / 1e6}


def in_place(job: Job, backend: str) -> InProcess:
    """edgestitch: a budget that the topology is chosen under; where none is, it is pinned."""
    from edgestitch import Runtime

    # What calls take is not followed: a machine that others slow down would run another topology
    # than the one that is asked for.
    runtime = Runtime(job.folder / f"deployment-{backend}", rebuild=False, miss_rate=None)
    budgets: dict[str, float] = {}
    for candidate in runtime.deployment.plan.resident:
        runtime.budget_ms = candidate.latency_ms
        if runtime.topology == candidate.topology:
            budgets[candidate.topology] = candidate.latency_ms

    def change(name: str) -> None:
        if name in budgets:
            runtime.budget_ms = budgets[name]
        else:
            runtime.switch(name)

    return InProcess(change, runtime)


class _Current:
    """What holds the one run that is in use."""

    run: Run

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return self.run(image)


def separate_engines(job: Job) -> InProcess:
    """Every engine resident, each with its own weights."""
    load, current = engine_loader(job), _Current()
    runs = {name: load(name) for name in job.names}

    def change(name: str) -> None:
        current.run = runs[name]

    return InProcess(change, current)


def reload_engine(job: Job, *, cached: bool) -> InProcess:
    """One engine at a time, from disk."""
    if job.accelerator != "cpu":
        raise RuntimeError("engines are reloaded by OpenVINO only")
    core, current = openvino_core(job, cached=cached), _Current()

    def change(name: str) -> None:
        current.__dict__.clear()  # the old one goes before the new one comes
        current.run = openvino_run(job, core, name)

    return InProcess(change, current)


def reload_weights(job: Job, *, blocks: bool) -> InProcess:
    """One network at a time in eager PyTorch, whose weights are read from disk as it is needed.

    `blocks`: only those that the network before had not, a file each, as AdaptiveNet and LegoDNN
    do; else the whole network, one file.
    """
    network, held, current = _emptied(job), set[str](), _Current()
    atoms = {name: job.subject.atoms(name) for name in job.names}

    def change(name: str) -> None:
        wanted = set(atoms[name])
        for atom in held - wanted if blocks else set(held):
            _empty(network.atoms[atom])
            held.discard(atom)
        if blocks:
            for atom in atoms[name]:
                if atom not in held:
                    fill(job, network.atoms[atom], job.folder / "atoms" / f"{atom}.pt")
        else:
            fill(job, network.chain(atoms[name]), job.folder / "whole" / f"{name}.pt")
        held.update(wanted)
        current.run = partial(walk, network.chain(atoms[name]))

    return InProcess(change, current)


def _emptied(job: Job) -> "StitchNetwork":
    """The stitched network without weights in memory; what is never stored stays."""
    from edgestitch.network import build_network

    job.torch_device()
    network = build_network(job.subject).requires_grad_(False).eval()
    for atom in network.atoms.values():
        _empty(atom)
    return network


def _empty(module: "nn.Module") -> None:
    state = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def fill(job: Job, module: "nn.Module", path: Path) -> None:
    import torch

    device, dtype = job.torch_device(), job.dtype()
    state = torch.load(path, weights_only=True)
    if job.accelerator == "cuda":
        state = {
            name: t.to(device, dtype if t.is_floating_point() else None)
            for name, t in state.items()
        }
    module.load_state_dict(state, assign=True)


# In a process of their own; times are of a clock that all processes share.
RESTART_EAGER = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np, torch, msgspec
from edgestitch.network import build_network
from rivals import Job, fill, walk
imported = time.monotonic_ns()
job, name = msgspec.json.decode(sys.argv[2], type=Job), sys.argv[3]
job.torch_device()
with torch.device("meta"):
    module = build_network(job.subject).requires_grad_(False).eval().assemble(name)
fill(job, module, job.folder / "whole" / f"{name}.pt")
run = lambda image: walk(module, image)
"""
RESTART_ENGINE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np, openvino, msgspec
from rivals import Job, openvino_core, openvino_run
imported = time.monotonic_ns()
job, name = msgspec.json.decode(sys.argv[2], type=Job), sys.argv[3]
run = openvino_run(job, openvino_core(job, cached=True), name)
"""
FIRST_RESULT = """
image = np.load(sys.argv[4])
run(image)
first = time.monotonic_ns()
for _ in range(3):
    start = time.perf_counter_ns()
    run(image)
    steady = time.perf_counter_ns() - start
print(json.dumps({"imported": imported, "first": first, "steady": steady}))
"""


class Restart:
    """A process for each network, as Dynamic-OFA does: it ends, the next one begins."""

    def __init__(self, job: Job, script: str) -> None:
        self._job, self._script = job, script + FIRST_RESULT

    def first_result(self, before: str, after: str, image: np.ndarray) -> dict[str, float]:
        told = [str(Path(__file__).parent), msgspec.json.encode(self._job).decode(), after]
        told.append(str(self._job.folder / "image.npy"))
        start = time.monotonic_ns()
        finished = subprocess.run(
            [sys.executable, "-c", self._script, *told], capture_output=True, text=True, check=False
        )
        if finished.returncode:
            raise RuntimeError((finished.stderr.strip().splitlines() or ["it was killed"])[-1])
        found = json.loads(finished.stdout.splitlines()[-1])
        return {
            "first_ms": (found["first"] - start) / 1e6,
            "steady_ms": found["steady"] / 1e6,
            "imports_ms": (found["imported"] - start) / 1e6,
        }


def restart_engine(job: Job) -> Restart:
    if job.accelerator != "cpu":
        raise RuntimeError("engines are reloaded by OpenVINO only")
    return Restart(job, RESTART_ENGINE)


def switchers(job: Job) -> dict[str, Callable[[], Switcher]]:
    """By what the page calls them."""
    title = TITLES[job.engine]
    return {
        **{ours(backend): partial(in_place, job, backend) for backend in job.ours},
        f"{ours(job.ours[0])}, again": partial(in_place, job, job.ours[0]),
        f"{title}, an engine each, resident": partial(separate_engines, job),
        "reload, PyTorch: blocks that differ": partial(reload_weights, job, blocks=True),
        "reload, PyTorch: whole network": partial(reload_weights, job, blocks=False),
        f"reload, {title}: compiled anew": partial(reload_engine, job, cached=False),
        f"reload, {title}: from its cache": partial(reload_engine, job, cached=True),
        "restart, PyTorch": partial(Restart, job, RESTART_EAGER),
        f"restart, {title}": partial(restart_engine, job),
    }


# --- memory ------------------------------------------------------------------------------------

Way = tuple[Callable[[], Any], Callable[[], Any]]
"""What brings the libraries in, and what loads and runs all topologies and gives what holds them."""


def ways(job: Job) -> dict[str, Way]:
    """By what the page calls them; topologies run cheapest first, so the largest is the last."""
    title, image = TITLES[job.engine], image_of(job)

    def all_of(loader: Callable[[], Callable[[str], Run]]) -> Any:
        load = loader()
        runs = [load(name) for name in job.names]
        for run in runs:
            for _ in range(WARM_UP):
                run(image)
        return load, runs

    def one_by_one(make: Callable[[], InProcess]) -> Any:
        switcher = make()
        for before, after in zip(job.names, job.names[1:], strict=False):
            switcher.first_result(before, after, image)
        return switcher

    found: dict[str, Way] = {}
    for backend in job.ours:
        found[ours(backend)] = (
            partial(_toy, job, backend),
            partial(all_of, partial(resident, job, backend)),
        )
    stem = partial(_stem, job)
    engine = partial(_engine_stem, job)
    found[f"{title}, an engine each"] = engine, partial(all_of, partial(engine_loader, job))
    session = partial(session_loader, job)
    small = partial(_session_stem, job)
    found[f"{ONNX_RUNTIME}, a session each"] = small, partial(all_of, session)
    found["PyTorch, a model each"] = stem, partial(all_of, partial(_models_each, job))
    blocks = partial(reload_weights, job, blocks=True)
    found["reload or restart, PyTorch: one at a time"] = stem, partial(one_by_one, blocks)
    cached = partial(reload_engine, job, cached=True)
    found[f"reload or restart, {title}: one at a time"] = engine, partial(one_by_one, cached)
    return found


def _toy(job: Job, backend: str) -> None:
    from edgestitch import Runtime

    with Runtime(job.folder / f"toy-{backend}", rebuild=False) as runtime:
        runtime(np.zeros(runtime.input_shape, np.float32))


def _stem(job: Job) -> None:
    network, name = _emptied(job), f"{job.anchors[0]}:stem"
    fill(job, network.atoms[name], job.folder / "atoms" / f"{name}.pt")
    walk(network.atoms[name], image_of(job))


def _engine_stem(job: Job) -> None:
    if job.accelerator == "cpu":
        openvino_run(job, openvino_core(job), "stem")(image_of(job))
    else:
        _stem(job)


def _session_stem(job: Job) -> None:
    session_loader(job)("stem")(image_of(job))


def _models_each(job: Job) -> Callable[[str], Run]:
    """A network of its own for each topology, as one has who loads separate checkpoints."""

    def load(name: str) -> Run:
        module = _emptied(job).assemble(name)
        fill(job, module, job.folder / "whole" / f"{name}.pt")
        return partial(walk, module)

    return load
