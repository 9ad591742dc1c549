"""AOTInductor: code compiled ahead of time without weights, bound to the network's own tensors.

A package holds no weights: it gets the addresses of the network's. So all that is compiled shares
one copy of them, and segments that compute the same thing, as the blocks of an anchor, share one
package, unless they have vectors so short that the compiler writes them into the code.
"""

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
from .chain import DTYPES, Step, chained, in_precision

# torch._inductor.graph.GraphLowering.can_inline_constant
MAX_INLINED = 8
_COMPILERS = ("c++", "g++", "clang++")


def _unavailable() -> str | None:
    if os.environ.get("CXX") or any(map(shutil.which, _COMPILERS)):
        return None
    return "it takes a C++ compiler, and there is none; apt-get install g++"


def _compile(request: Request) -> None:
    example, dtype = request.example, DTYPES[request.precision]
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


def _load(compiled: Compiled) -> Load:
    device, dtype = torch.device(compiled.accelerator), DTYPES[compiled.precision]
    network = in_precision(compiled.network().eval(), device, dtype)

    def segment(name: str) -> Step:
        module = nn.Sequential(*network.chain(compiled.atoms[name]).children())
        return _bind(compiled.folder, name, module)

    return chained(segment, compiled)


def _bind(folder: Path, name: str, module: nn.Module) -> Step:
    """A segment's package with the addresses of the module's tensors, which it keeps alive."""
    key = (folder / f"{name}.package").read_text()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    model = torch._inductor.aoti_load_package(str(folder / f"{key}.pt2"))
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
    unavailable=_unavailable,
    compile=_compile,
    load=_load,
    version=lambda: str(torch.__version__),
    shares_weights=True,
)
