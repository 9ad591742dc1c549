"""Verbs that show what was found."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from .base import (
    backend_option,
    batch_option,
    device_option,
    json_option,
    out_option,
    precision_option,
    print_json,
    print_table,
    progress_bar,
    verb,
)

if TYPE_CHECKING:
    from edgestitch.peers import Peer
    from edgestitch.zoo import Zoo


@verb("edgestitch report accuracy.json --profile profile.json --plan plan.json --out report.html")
@click.argument(
    "artifacts", metavar="[ACCURACY|ARTIFACT]...", nargs=-1, type=click.Path(path_type=Path)
)
@click.option(
    "--family",
    "family_name",
    help="The family, a shipped recipe's name or a TOML file; needed without artifacts, and where "
    "they name one that does not ship.",
)
@click.option("--profile", type=click.Path(path_type=Path), help="Latencies.")
@click.option("--plan", type=click.Path(path_type=Path), help="What is resident.")
@click.option("--zoo", type=click.Path(path_type=Path), help="Individually trained networks.")
@click.option("--switches", type=click.Path(path_type=Path), help="What each switch costs.")
@click.option(
    "--log", "logs", multiple=True, type=click.Path(path_type=Path), help="A run; may be repeated."
)
@out_option("report.html", "the page")
def report(
    artifacts: tuple[Path, ...],
    family_name: str | None,
    profile: Path | None,
    plan: Path | None,
    zoo: Path | None,
    switches: Path | None,
    logs: tuple[Path, ...],
    out: Path,
) -> None:
    """One self-contained HTML page: accuracy against latency, a budget slider, where the time goes.

    Of any mix of artifacts, recognised by what is in them: accuracy, profile, plan, zoo, switches and
    logs of runs. With --family also what ships for it.
    """
    from edgestitch.report import report_files

    options = {"profile": profile, "plan": plan, "zoo": zoo, "switches": switches}
    named = [(field, path) for field, path in options.items() if path is not None]
    named += [("logs", path) for path in logs]
    if not artifacts and not named and family_name is None:
        raise click.UsageError("give ACCURACY or --family, or any other artifacts")
    left_out = report_files(out, artifacts, named=named, family=family_name)
    if left_out:
        print(f"left out, of no use in a report: {', '.join(left_out)}", file=sys.stderr)
    print(f"wrote {out}")


@verb("edgestitch zoo --models 'resnet*,deit*' --time-cap-s 600 --out zoo.json")
@device_option
@backend_option
@precision_option
@batch_option
@click.option(
    "--models",
    multiple=True,
    help="Only networks of such names, as 'resnet*', with commas between; may be repeated.",
)
@click.option(
    "--time-cap-s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="For all together: it ends after that, and goes on where it was when called again.",
)
@click.option(
    "--min-samples",
    default=473,
    show_default=True,
    type=click.IntRange(1),
    help="Of each network, if there is time; 99th percentiles need 473.",
)
@click.option(
    "--group",
    default=6,
    show_default=True,
    type=click.IntRange(1),
    help="Networks that are in memory at once.",
)
@click.option(
    "--energy/--no-energy", default=True, show_default=True, help="Measure energy if it can be."
)
@click.option("--meter", help="Use this energy meter: one that `edgestitch env` lists.")
@click.option("--list", "listed", is_flag=True, help="Show the networks, and measure none.")
@out_option("zoo.json", "what was measured")
@json_option
def zoo(
    device: str,
    backend: str,
    precision: str,
    batch: int,
    models: tuple[str, ...],
    time_cap_s: float,
    min_samples: int,
    group: int,
    energy: bool,
    meter: str | None,
    listed: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Measures networks of timm on this device, for a stitched one to stand beside.

    They are those of SN-Net's project page, and the anchors of the families here by themselves, with
    random weights, which cost the same, and published accuracies. What timm does not know, or what
    cannot be built or run, is in the table with the reason.
    """
    from edgestitch.zoo import select, tables

    patterns = [pattern for given in models for pattern in given.split(",") if pattern]
    selected = select(tables(), patterns)
    if listed:
        return _list_networks([peer for _, peer in selected], as_json)
    from edgestitch.device import resolve

    found = resolve(device)  # before torch is imported: this is the error people meet first
    from edgestitch.artifact import save
    from edgestitch.instruments import find_instruments
    from edgestitch.zoo_run import SETTINGS, is_complete, measure_zoo

    settings = msgspec.structs.replace(
        SETTINGS,
        timer=msgspec.structs.replace(SETTINGS.timer, min_samples=min_samples),
        energy=SETTINGS.energy if energy else None,
    )
    unfinished = out.with_suffix(".unfinished")
    with progress_bar() as progress:
        result = measure_zoo(
            find_instruments(found, energy=energy, meter=meter),
            settings,
            models=patterns,
            backend=backend,
            precision=precision,
            batch=batch,
            time_cap_s=time_cap_s,
            group=group,
            unfinished=unfinished,
            progress=progress,
        )
    save(result, out)
    if is_complete(result):
        shutil.rmtree(unfinished)
    if as_json:
        return print_json(result)
    _show_zoo(result)
    print(f"wrote {out}")
    if not is_complete(result):
        print(f"the same command goes on with what is left, from {unfinished}")
    return None


def _list_networks(peers: "list[Peer]", as_json: bool) -> None:
    from edgestitch.report import format_count, format_gmacs, format_percent
    from edgestitch.zoo_run import known

    here = {peer.name: known(peer.name) for peer in peers}
    if as_json:
        return print_json([{"name": p.name, "top1": p.top1, "known": here[p.name]} for p in peers])
    print_table(
        f"{len(peers)} networks, {sum(here.values())} of them known to the timm here",
        ["model", "top-1", "multiply-adds", "parameters", "timm"],
        [
            [
                peer.name,
                format_percent(peer.top1),
                format_gmacs(peer.gmacs),
                format_count(peer.params),
                "" if here[peer.name] else "unknown",
            ]
            for peer in peers
        ],
    )
    return None


def _show_zoo(zoo: "Zoo") -> None:
    """Fastest first, then those that were not measured with the reasons."""
    from edgestitch.report import format_mj, format_ms, format_percent

    rows = []
    for row in sorted(zoo.measured, key=lambda row: row.latency_ms or 0.0):
        assert row.cost is not None
        cost = row.cost
        rows.append(
            [
                row.name,
                format_percent(row.top1),
                format_ms(cost.latency_ms),
                f"{format_ms(cost.latency_low_ms)} to {format_ms(cost.latency_high_ms)}",
                format_ms(cost.bound_ms),
                "" if cost.energy_mj is None else format_mj(cost.energy_mj),
                str(cost.samples),
                "",
            ]
        )
    rows += [
        [row.name, format_percent(row.top1), "", "", "", "", "", row.reason]
        for row in zoo.rows
        if row.reason is not None
    ]
    print_table(
        f"{len(zoo.measured)} of {len(zoo.rows)} networks on {zoo.conditions.label}",
        ["model", "top-1", "median", "interval", "bound", "energy", "samples", "not measured"],
        rows,
    )
    print(f"top-1 published: {zoo.source}")
    if zoo.energy_reason:
        print(f"energy: not measured: {zoo.energy_reason}")
    for note in zoo.notes:
        print(note)
