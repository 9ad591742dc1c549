"""AOTInductor: code compiled ahead of time without weights, bound to the network's own tensors.

A package holds no weights: it gets the addresses of the network's. So all that is compiled shares
one copy of them, and segments that compute the same thing, as the blocks of an anchor, share one
package, unless they have vectors so short that the compiler writes them into the code. On CUDA each
topology is captured into a graph, so that a call is one launch and not one for each kernel.
"""

import importlib.util
import logging
import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from edgestitch.artifact import sha256
from edgestitch.errors import CompileError
from edgestitch.network import structure

from . import Backend, Compiled, Load, Request
from .chain import DTYPES, Step, chained, in_precision, loaded_network, per_segment
from .graphs import captured

# torch._inductor.graph.GraphLowering.can_inline_constant
MAX_INLINED = 8
_COMPILERS = ("c++", "g++", "clang++")


def missing(accelerator: str) -> str | None:
    """What compiling lacks here and what to do about it; packages that exist run without it."""
    if not os.environ.get("CXX") and not any(map(shutil.which, _COMPILERS)):
        return "it takes a C++ compiler, and there is none; apt-get install g++"
    if accelerator == "cuda" and importlib.util.find_spec("triton") is None:
        return "it takes Triton for CUDA, which is not installed; pip install triton"
    return None


def _compile(request: Request) -> None:
    example, dtype = request.example, DTYPES[request.precision]
    lacking = missing(example.device.type)
    if lacking is not None:
        raise CompileError(
            f"inductor cannot compile {request.path.name}: {lacking}, or use another backend"
        )
    # Numbered, not named: the names of its weights are then those of every segment like it.
    module = nn.Sequential(*request.module.children())
    shape = tuple(example.shape)
    parts = (structure(module), _inlined(module), shape, example.device.type, request.precision)
    key = sha256(repr(parts).encode())[:16]
    package = request.path.with_name(f"{key}.pt2")
    if not package.exists():
        plain = in_precision(module, example.device, dtype)
        _build(plain, example.to(dtype), package, request.path.name)
    request.path.with_name(f"{request.path.name}.package").write_text(key)


def _inlined(module: nn.Module) -> list[tuple[str, list[float]]]:
    """The weights that the compiler writes into the code as numbers: vectors of eight at most."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return [(name, t.tolist()) for name, t in tensors if t.dim() == 1 and len(t) <= MAX_INLINED]


def _build(module: nn.Module, example: Tensor, package: Path, name: str) -> None:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter and the compiler, about themselves
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA here
            exported = torch.export.export(module.eval(), (example,))
            temporary = package.with_suffix(".tmp.pt2")
            torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(temporary),
                inductor_configs={"aot_inductor.package_constants_in_so": False},
            )
            temporary.replace(package)
    except Exception as error:  # the compiler has no class of its own for its failures
        reason = " ".join(str(error).split())[:500]
        raise CompileError(f"inductor cannot compile {name}: {reason}") from error


def _files(folder: Path, segment: str) -> list[Path]:
    """The name of its package and the package, which is other segments' as well."""
    name = folder / f"{segment}.package"
    return [name, folder / f"{name.read_text()}.pt2"] if name.exists() else []


def _load(compiled: Compiled) -> Load:
    device = torch.device(compiled.accelerator)
    network = loaded_network(compiled)

    def segment(name: str) -> Step:
        module = nn.Sequential(*network.chain(compiled.atoms[name]).children())
        return _bind(compiled.folder, name, module, device)

    steps = per_segment(segment, compiled)
    return captured(steps, compiled) if device.type == "cuda" else chained(steps, compiled)


def _bind(folder: Path, name: str, module: nn.Module, device: torch.device) -> Step:
    """A segment's package with the addresses of the module's tensors, which it keeps alive."""
    key = (folder / f"{name}.package").read_text()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # With threads in mind a package asks CUDA whether its last run has ended, which is an error if
    # that run was captured. Captures and warm-ups come one at a time as it is.
    model = torch._inductor.aoti_load_package(
        str(folder / f"{key}.pt2"), run_single_threaded=device.type == "cuda"
    )
    wanted = model.get_constant_fqns()
    unknown = [fqn for fqn in wanted if fqn not in tensors]
    if unknown:
        raise CompileError(
            f"inductor compiled {name} with constants that are no weights of it: "
            f"{', '.join(unknown[:3])}; use another backend"
        )
    constants = {fqn: tensors[fqn].detach() for fqn in wanted}
    model.load_constants(constants, check_full_update=True, user_managed=True)

    def step(value: Tensor, tensors: object = constants) -> Tensor:
        result: Tensor = model(value)
        return result

    return step


BACKEND = Backend(
    name="inductor",
    accelerators=("cpu", "cuda"),
    precisions=tuple(DTYPES),
    unavailable=lambda: None,
    compile=_compile,
    load=_load,
    version=lambda: str(torch.__version__),
    files=_files,
    shares_weights=True,
)
