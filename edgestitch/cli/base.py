"""What all verbs share: the group, options, networks by name, and how results are printed."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
import msgspec

from edgestitch import __version__
from edgestitch.errors import ArtifactError, EdgestitchError
from edgestitch.progress import Progress, silent
from edgestitch.recipe import load_family

if TYPE_CHECKING:
    from edgestitch.measure import MeasureSettings

F = TypeVar("F", bound=Callable[..., Any])


DEFAULT_NETWORK = "fashion-vit"


class Verb(click.Command):
    """A verb whose errors are one line on stderr."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (EdgestitchError, ValueError, TypeError) as error:
            if context.find_root().params.get("traceback"):
                raise
            _fail(error)


def _fail(error: Exception) -> NoReturn:
    print(f"edgestitch: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgestitch")
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
def cli(traceback: bool) -> None:
    """Stitchable networks on the device: measured, scheduled, compiled, switched in place."""


def verb(example: str, name: str | None = None) -> Callable[[F], click.Command]:
    return cli.command(name, cls=Verb, epilog=f"Example:  {example}")


def main() -> None:
    """The console script; Ctrl-C ends it with exit code 130, SIGTERM with 143, nothing half-written."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli(standalone_mode=False)
    except click.Abort:
        print("edgestitch: interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)


def _terminate(number: int, frame: object) -> NoReturn:
    """As Ctrl-C does: what must be put back is put back on the way out."""
    print("edgestitch: terminated; nothing half-written is left", file=sys.stderr)
    sys.exit(128 + number)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="What to run on: auto, cpu, cuda, or a Jetson, such as jetson-orin.",
)


data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder with the data set's files."
)


readers_option = click.option(
    "--readers", type=click.IntRange(min=0), default=0, help="Processes that read images ahead."
)


precision_option = click.option(
    "--precision", default="fp32", show_default=True, help="fp32, fp16 or bf16."
)


backend_option = click.option(
    "--backend", default="auto", show_default=True, help="auto, or one that `edgestitch env` lists."
)


batch_option = click.option(
    "--batch", default=1, show_default=True, type=click.IntRange(1), help="Images in a call."
)


time_cap_option = click.option(
    "--time-cap-s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Measuring ends after that at the latest.",
)


min_samples_option = click.option(
    "--min-samples",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="Of each topology; 99th percentiles need 473.",
)


accuracy_argument = click.argument(
    "accuracy_file", metavar="[ACCURACY]", required=False, type=click.Path(path_type=Path)
)


budget_option = click.option(
    "--budget-ms", "budgets_ms", multiple=True, type=float, help="A deadline; may be repeated."
)


module_option = click.option("--module", help="For an estimate: the part number, as p3767-0004.")


super_option = click.option(
    "--super", "super_clocks", is_flag=True, help="For an estimate: in JetPack's Super modes."
)


def out_option(default: str | None, what: str) -> Callable[[F], F]:
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=default,
        required=default is None,
        show_default=default is not None,
        help=f"Where {what} goes.",
    )


def named_network(name: str) -> Any:
    """A network by the name of a shipped one or by its file."""
    from edgestitch.catalog import shipped_network
    from edgestitch.network import load_network

    path = Path(name)
    if path.suffix != ".safetensors":
        path = shipped_network(name)
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.safetensors")))
            raise ArtifactError(
                f"no network {name!r}; give a .safetensors file that `edgestitch calibrate` wrote, "
                f"or a shipped one: {known}"
            )
    return load_network(path)


def network_or_random(name: str) -> tuple[Any, bool]:
    """A network by name or file, and whether its weights are random since none ship for the name."""
    from edgestitch.catalog import shipped_network
    from edgestitch.network import build_network

    if Path(name).suffix == ".safetensors" or shipped_network(name).is_file():
        return named_network(name), False
    try:
        family = load_family(name)
    except (ArtifactError, ValueError) as error:
        raise ValueError(
            f"no network {name!r}; give a .safetensors file with weights, or a recipe: {error}"
        ) from error
    print(f"no weights ship for {family.name}: random ones, which cost the same", file=sys.stderr)
    return build_network(family), True


def measure_settings(time_cap_s: float, min_samples: int, energy: bool) -> "MeasureSettings":
    from edgestitch.energy import EnergySettings
    from edgestitch.measure import MeasureSettings
    from edgestitch.timer import TimerSettings

    return MeasureSettings(
        timer=TimerSettings(time_cap_s=time_cap_s, min_samples=min_samples),
        energy=EnergySettings(time_cap_s=time_cap_s) if energy else None,
    )


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # As wide as the table needs where nobody's terminal limits it.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print()
    # Not the table's own title, which is broken where the table ends.
    console.print(title, markup=False, highlight=False, soft_wrap=True, style="italic")
    console.print(table)


def print_json(value: object) -> None:
    data = msgspec.json.encode(value)
    print(msgspec.json.format(data, indent=1).decode())


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar with the time left on a terminal, and nothing elsewhere.

    With EDGESTITCH_PROGRESS=json lines of JSON for whoever started this, such as `remote`.
    """
    if os.environ.get("EDGESTITCH_PROGRESS") == "json":
        from edgestitch.remote import progress_lines

        yield progress_lines(sys.stderr)
        return
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                bars.update(task, visible=False)
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total, visible=True)

    with bars:
        yield progress
