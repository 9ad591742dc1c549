"""Verbs that measure: what works here, what a network costs, and whether that still holds."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgestitch import load_profile
from edgestitch.artifact import save
from edgestitch.errors import DeviceError, MismatchError
from edgestitch.recipe import load_family

from .base import (
    DEFAULT_NETWORK,
    backend_option,
    batch_option,
    device_option,
    json_option,
    module_option,
    network_or_random,
    precision_option,
    print_json,
    print_table,
    progress_bar,
    super_option,
    verb,
)
from .networks import estimated_profile

if TYPE_CHECKING:
    from edgestitch.device import Device
    from edgestitch.instruments import Instruments
    from edgestitch.measure import MeasureSettings
    from edgestitch.profile import Conditions, Load, Profile
    from edgestitch.verify import Verification


@verb("edgestitch env")
@json_option
def env(as_json: bool) -> None:
    """What this machine is, and what works on it."""
    from edgestitch.environment import describe, lines

    found = describe()
    if as_json:
        return print_json(found)
    for line in lines(found):
        print(line)
    return None


@verb("edgestitch profile --device jetson-orin")
@click.argument("network", default=DEFAULT_NETWORK)
@device_option
@click.option(
    "--host", help="Measure there, over SSH: user@jetson. A lost connection is taken up again."
)
@click.option(
    "--remote-command",
    default="edgestitch",
    show_default=True,
    help="With --host: what starts edgestitch there.",
)
@backend_option
@precision_option
@batch_option
@click.option("--topologies", help="Only these, with commas between.")
@click.option("--all", "everything", is_flag=True, help="Measure all and compose none.")
@click.option(
    "--target",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Error of composed costs, 95th percentile; above it more are measured.",
)
@click.option(
    "--confidence",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0.5, 0.99),
    help="Of the bounds of composed costs.",
)
@click.option("--rate", type=float, help="One call every 1/RATE seconds, as a camera asks.")
@click.option("--idle-ms", type=float, help="Rest that long before each call.")
@click.option("--contend", metavar="CMD", help="Runs beside, to take part of the device away.")
@click.option("--keep-throttled", is_flag=True, help="Keep what is measured while it throttles.")
@click.option("--power-modes", help="Profile in each of these modes in turn, with commas between.")
@click.option(
    "--energy/--no-energy", default=True, show_default=True, help="Measure energy if it can be."
)
@click.option("--require-energy", is_flag=True, help="Fail where no energy meter works.")
@click.option("--meter", help="Use this energy meter: one that `edgestitch env` lists.")
@click.option(
    "--estimate", "estimated", is_flag=True, help="Measure nothing: from the device's facts alone."
)
@module_option
@super_option
@click.option(
    "--time-cap-s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Measuring latency ends after that at the latest, and so does energy.",
)
@click.option(
    "--min-samples",
    default=473,
    show_default=True,
    type=click.IntRange(1),
    help="Of each topology; 99th percentiles need 473.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where the profile goes; named after its conditions otherwise.",
)
@json_option
def profile(
    network: str,
    device: str,
    host: str | None,
    remote_command: str,
    backend: str,
    precision: str,
    batch: int,
    topologies: str | None,
    everything: bool,
    target: float,
    confidence: float,
    rate: float | None,
    idle_ms: float | None,
    contend: str | None,
    keep_throttled: bool,
    power_modes: str | None,
    energy: bool,
    require_energy: bool,
    meter: str | None,
    estimated: bool,
    module: str | None,
    super_clocks: bool,
    time_cap_s: float,
    min_samples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measures latency and energy of the topologies of NETWORK: some of them, and composes the rest.

    NETWORK is a file of weights, or the name of a shipped network or recipe; where no weights ship,
    random ones are measured, which cost the same. A profile that is killed goes on where it was when
    it is called again.
    """
    modes = power_modes.split(",") if power_modes else [None]
    if len(modes) > 1 and (out is not None or host is not None):
        raise click.UsageError("--out and --host are for one profile, of one of the --power-modes")
    if host is not None and estimated:
        raise click.UsageError("an estimate needs no --host: it is made from the device's name")
    if host is not None:
        return _profile_on(host, remote_command, network, out, as_json)
    if estimated:
        result = estimated_profile(
            load_family(network), device, precision, module, super_clocks, batch=batch
        )
        out = out or Path(f"{result.family}.{device}.estimate-{precision}.json")
        save(result, out)
        return print_json(result) if as_json else _show_profile(result, out)
    from edgestitch.device import resolve

    resolve(device)  # before torch is imported: this is the error people meet first
    from edgestitch.energy import EnergySettings
    from edgestitch.measure import MeasureSettings
    from edgestitch.timer import TimerSettings

    settings = MeasureSettings(
        timer=TimerSettings(
            time_cap_s=time_cap_s, min_samples=min_samples, keep_throttled=keep_throttled
        ),
        energy=EnergySettings(time_cap_s=time_cap_s) if energy or require_energy else None,
        load=_load(rate, idle_ms),
        contention=contend,
        compose=not everything,
        target=target,
        confidence=confidence,
    )
    loaded, random_weights = network_or_random(network)
    for mode in modes:
        with _power_mode(mode):
            path, result = _measure_profile(
                loaded,
                device,
                settings,
                out,
                topologies=tuple(topologies.split(",")) if topologies else (),
                backend=backend,
                precision=precision,
                batch=batch,
                random_weights=random_weights,
                require_energy=require_energy,
                meter=meter,
            )
        if as_json:
            print_json(result)
        else:
            _show_profile(result, path)
    return None


@verb("edgestitch verify profile.json")
@click.argument("what", metavar="PROFILE|DEPLOYMENT", type=click.Path(path_type=Path))
@click.argument("network", required=False)
@click.option("--number", default=5, show_default=True, type=click.IntRange(2), help="Topologies.")
@click.option(
    "--tolerance",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0),
    help="Relative change of a median that is let pass.",
)
@json_option
def verify(what: Path, network: str | None, number: int, tolerance: float, as_json: bool) -> None:
    """Whether a PROFILE or a DEPLOYMENT still holds.

    A profile: a few of its topologies are measured again. A deployment: all its files are as they were
    written, its topologies equal eager, and a few take the time that they took.

    Exit code 0: it holds; 1: no longer; 3: this is another network, device, mode, driver or backend,
    or it cannot be measured here as it was.
    NETWORK, the weights of a PROFILE, may be left out where they ship or are random.
    """
    try:
        if what.is_dir():
            if network is not None:
                raise click.UsageError("a deployment has its own network: leave NETWORK out")
            holds = _verify_deployment(what, number, tolerance, as_json)
        else:
            holds = _verify_profile(what, network, number, tolerance, as_json)
    except (MismatchError, DeviceError) as error:
        print(f"edgestitch: not comparable: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(3)
    sys.exit(0 if holds else 1)


def _verify_profile(
    path: Path, network: str | None, number: int, tolerance: float, as_json: bool
) -> bool:
    profile = load_profile(path)
    instruments = _instruments_like(profile.conditions)
    from edgestitch.verify import verify as run

    loaded, _ = network_or_random(network or profile.family)
    with progress_bar() as progress:
        result = run(
            profile, loaded, instruments, number=number, tolerance=tolerance, progress=progress
        )
    if as_json:
        print_json({"holds": result.holds, "verification": result})
        return result.holds
    _print_replay(
        f"{profile.family} on {profile.conditions.label}, measured {profile.date}", result
    )
    print("the profile holds" if result.holds else "the profile no longer holds: measure again")
    return result.holds


def _verify_deployment(folder: Path, number: int, tolerance: float, as_json: bool) -> bool:
    from edgestitch.deployment import load_manifest

    manifest = load_manifest(folder)
    instruments = _instruments_like(manifest.conditions)
    from edgestitch.verify import verify_deployment

    with progress_bar() as progress:
        found = verify_deployment(
            folder, instruments, number=number, tolerance=tolerance, progress=progress
        )
    holds = all(one.holds for one in found)
    if as_json:
        print_json({"holds": holds, "inspections": found})
        return holds
    versions = ", ".join(f"{name} {version}" for name, version in found[0].versions.items())
    print(f"{sum(one.files for one in found)} files are as they were written; {versions}")
    for one in found:
        failures = [equality for equality in one.equalities if equality.failure is not None]
        worst = max((e.check.max_difference for e in one.equalities if e.check), default=None)
        furthest = "" if worst is None else f", furthest {worst:.1e} of the largest logit"
        sound = len(one.equalities) - len(failures)
        print(f"batch {one.batch}: {sound} of {len(one.equalities)} equal eager{furthest}")
        for equality in failures:
            print(f"  {equality.topology}: {equality.failure}")
        _print_replay(f"{manifest.family.name} on {manifest.conditions.label}", one.replay)
    print("the deployment holds" if holds else "the deployment no longer holds: compile it again")
    return holds


def _instruments_like(conditions: "Conditions") -> "Instruments":
    """Those of what was measured on, if that can be had here; else of this machine, to say what it is."""
    from edgestitch.device import resolve

    found = resolve("cpu" if conditions.device == "cpu" else "auto")
    from edgestitch.instruments import find_instruments

    return find_instruments(found, energy=False)


def _print_replay(title: str, result: "Verification") -> None:
    from edgestitch.report import format_ms

    rows = [
        [
            replay.topology,
            format_ms(replay.then_ms),
            format_ms(replay.now_ms),
            f"{replay.ratio:.3f}x",
            "holds" if replay.holds else "no longer",
        ]
        for replay in result.replays
    ]
    columns = ["topology", "then", "now", "ratio", f"within {result.tolerance:.0%}"]
    print_table(title, columns, rows)


def _load(rate: float | None, idle_ms: float | None) -> "Load":
    from edgestitch.profile import Load

    if rate is not None and idle_ms is not None:
        raise click.UsageError("give --rate or --idle-ms, not both")
    if rate is not None:
        return Load(kind="paced", rate_hz=rate)
    return Load() if idle_ms is None else Load(kind="after-idle", gap_ms=idle_ms)


def _power_mode(mode: str | None) -> AbstractContextManager[object]:
    """The board in that mode meanwhile; `None` leaves it as it is."""
    if mode is None:
        return nullcontext()
    from edgestitch.power import switched

    return switched(mode)


def _measure_profile(
    network: Any,
    device: str,
    settings: "MeasureSettings",
    out: Path | None,
    *,
    backend: str,
    precision: str,
    require_energy: bool,
    meter: str | None,
    **options: Any,
) -> "tuple[Path, Profile]":
    """One profile in the power mode that holds, kept while it is measured, and saved."""
    from edgestitch.backends import backend as find_backend
    from edgestitch.device import resolve
    from edgestitch.engine import profile_network
    from edgestitch.instruments import find_instruments
    from edgestitch.measure import save_profile

    found = resolve(device)
    instruments = find_instruments(found, energy=settings.energy is not None, meter=meter)
    if require_energy and instruments.meter.reason is not None:
        raise DeviceError(f"no energy meter works on {found.name}: {instruments.meter.reason}")
    chosen = find_backend(backend, found.accelerator)
    out = out or Path(_profile_name(network.family.name, found, chosen.name, precision))
    unfinished = out.with_suffix(".unfinished")
    with progress_bar() as progress:
        result, samples = profile_network(
            network,
            instruments,
            settings,
            backend=chosen,
            precision=precision,
            unfinished=unfinished,
            progress=progress,
            **options,
        )
    save_profile(result, samples, out)
    unfinished.unlink()
    return out, result


def _profile_name(family: str, device: "Device", backend: str, precision: str) -> str:
    mode = "" if device.power_mode is None else f".{device.power_mode.lower().replace(' ', '-')}"
    return f"{family}.{device.name}{mode}.{backend}-{precision}.json"


def _profile_on(host: str, command: str, network: str, out: Path | None, as_json: bool) -> None:
    """The same command on another machine, with its own options but those that say where."""
    from edgestitch.device import Device
    from edgestitch.remote import profile_on

    context = click.get_current_context()
    path = Path(network)
    arguments = [path.absolute() if path.is_file() else network, *_given_options(context)]

    def where(profile: "Profile") -> Path:
        conditions = profile.conditions
        device = Device(
            name=conditions.device,
            hardware=conditions.hardware,
            cores=conditions.threads,
            memory_mib=0,
            power_mode=conditions.power_mode,
        )
        name = _profile_name(profile.family, device, conditions.backend, conditions.precision)
        return out or Path(name)

    with progress_bar() as progress:
        result, path = profile_on(
            host,
            arguments,
            where,
            command=command,
            progress=progress,
            tell=lambda line: print(line, file=sys.stderr),
        )
    if as_json:
        return print_json(result)
    return _show_profile(result, path)


def _given_options(context: click.Context) -> list[str]:
    """The options that were given on the command line, for another machine."""
    here = {"network", "host", "remote_command", "out", "as_json"}
    words: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        source = context.get_parameter_source(name)
        if name in here or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(option, click.Option) and option.is_flag:
            words.append((option.opts if value else option.secondary_opts)[0])
        else:
            words += [option.opts[0], str(value)]
    return words


def _show_profile(profile: "Profile", path: Path) -> None:
    from edgestitch.tables import beside_profile, of_profile

    print_table(*of_profile(profile))
    for line in beside_profile(profile):
        print(line)
    print(f"wrote {path}")
