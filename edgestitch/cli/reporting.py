"""Verbs that show what was found."""

from pathlib import Path

import click

from edgestitch import load_accuracy, load_plan, load_profile
from edgestitch.recipe import load_family

from .base import accuracy_argument, out_option, verb


@verb("edgestitch report accuracy.json --profile profile.json --plan plan.json --out report.html")
@accuracy_argument
@click.option(
    "--family",
    "family_name",
    help="The family, a shipped recipe's name or a TOML file; needed without ACCURACY, and where "
    "ACCURACY names one that does not ship.",
)
@click.option("--profile", "profile_file", type=click.Path(path_type=Path), help="Latencies.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="What is resident.")
@out_option("report.html", "the page")
def report(
    accuracy_file: Path | None,
    family_name: str | None,
    profile_file: Path | None,
    plan_file: Path | None,
    out: Path,
) -> None:
    """One self-contained HTML page: accuracy against latency, a budget slider, multiply-adds.

    Without ACCURACY: what ships for --family.
    """
    from edgestitch.catalog import require_accuracy, shipped_complexity, shipped_peers
    from edgestitch.report import write_report

    if accuracy_file is not None:
        accuracy = load_accuracy(accuracy_file)
    elif family_name is not None:
        accuracy = require_accuracy(load_family(family_name).name)
    else:
        raise click.UsageError("give ACCURACY or --family")
    family = load_family(family_name or accuracy.family).in_mode(accuracy.mode)
    write_report(
        out,
        family,
        accuracy,
        profile=load_profile(profile_file) if profile_file else None,
        plan=load_plan(plan_file) if plan_file else None,
        complexity=shipped_complexity(family),
        peers=shipped_peers(family),
    )
    print(f"wrote {out}")
