"""One stitched network against individually trained ones, in milliseconds on this device.

    python bench/zoo.py measure --zoo zoo.json                  # some 40 networks in eight minutes
    edgestitch profile deit-ti-s-b --no-energy --out deit.json  # the stitched network, the same backend
    python bench/zoo.py page deit.json --zoo zoo.json

`measure` is what `edgestitch zoo` does, and notes beside the file how much of the machine others had.
Called again it goes on with what the time cap left; `page` measures nothing.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pages

from edgestitch.artifact import load, save
from edgestitch.baseline import Beside, honest
from edgestitch.catalog import require_accuracy, shipped_complexity
from edgestitch.device import resolve
from edgestitch.instruments import find_instruments
from edgestitch.profile import Profile, require_comparable
from edgestitch.recipe import load_family
from edgestitch.schedule import Budget, candidates, staircase
from edgestitch.zoo import DRIFT, Zoo
from edgestitch.zoo_run import GROUP, SETTINGS, is_complete, measure_zoo

SUBSET = (
    # The anchors of the families, but for DeiT3-B and L.
    "deit_*,deit3_small_patch16_224.*,swin_*.ms_in22k_ft_in1k,resnet18.*,resnet50.*,levit_*,*lite?.in1k",
    # Of the project page one of each kind, the cheaper half first.
    "tv_resnext50_32x4d,res2net50_26w_4s,hrnet_w18,densenet201,dla60,resnetblur50,ecaresnet26t",
    "resnest50d,gcresnet50t,mobilevitv2_175,repvgg_a2,inception_v3,cs3darknet_focus_l,regnetz_d8",
    "resmlp_24_distilled_224,crossvit_15_dagger_240,regnetz_040,xcit_nano_12_p8_384_dist,regnety_040",
    "cspdarknet53,twins_pcpvt_base,volo_d1_224,resnet101,tf_efficientnetv2_s_in21ft1k,resnet152",
    "convnext_small_in22ft1k,efficientnetv2_rw_s",
)

BUDGETS = 8
"""Of each family, evenly spaced by ratio between its cheapest and its dearest topology."""


class Quiet(msgspec.Struct):
    """How the zoo was measured, in one call or several."""

    command: str
    others: list[float]
    """Share of the machine that other processes had, by call."""


# --- measuring -------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    patterns = [p for given in options.models or SUBSET for p in given.split(",")]
    unfinished = options.zoo.with_suffix(".unfinished")
    instruments = find_instruments(resolve(options.device))
    timer = msgspec.structs.replace(SETTINGS.timer, min_samples=options.min_samples)
    with pages.observed() as span:
        zoo = measure_zoo(
            instruments,
            msgspec.structs.replace(SETTINGS, timer=timer),
            models=patterns,
            backend=options.backend,
            precision=options.precision,
            time_cap_s=options.time_cap_s,
            group=options.group,
            unfinished=unfinished,
        )
    resumed = zoo.protocol.resumed > 0 and noted(options.zoo).is_file()
    before = msgspec.json.decode(noted(options.zoo).read_bytes(), type=Quiet) if resumed else None
    quiet = Quiet(
        command=command(options, zoo),
        others=[*(before.others if before else []), span.others],
    )
    save(zoo, options.zoo)
    noted(options.zoo).write_bytes(msgspec.json.encode(quiet))
    if is_complete(zoo):
        shutil.rmtree(unfinished)
    print(f"{len(zoo.measured)} of {len(zoo.rows)} in {span.duration_s:.0f} s. {noise(quiet)}")


def noted(zoo: Path) -> Path:
    return zoo.with_suffix(".quiet.json")


def command(options: argparse.Namespace, zoo: Zoo) -> str:
    """As it can be called again; no paths."""
    models = "".join(f" --models '{given}'" for given in options.models or ())
    conditions = zoo.conditions
    return (
        f"python bench/zoo.py measure --backend {conditions.backend} --precision "
        f"{conditions.precision} --time-cap-s {options.time_cap_s:g} --min-samples "
        f"{options.min_samples} --group {options.group}{models}"
    )


def noise(quiet: Quiet | None) -> str:
    if quiet is None:
        return "How much of the machine others had meanwhile is not known."
    return pages.noise(max(quiet.others))


# --- the page --------------------------------------------------------------------------------


class Beaten(msgspec.Struct):
    """Of the networks measured, how many a topology equals or beats without costing more."""

    family: str
    rivals: int
    by_gmacs: int
    by_latency: int
    rows: tuple[Beside, ...]

    @property
    def worse(self) -> int:
        return sum(row.worse for row in self.rows)


def compare(profile: Profile, zoo: Zoo) -> Beaten:
    require_comparable("profile and zoo", profile.conditions, zoo.conditions)
    family = load_family(profile.family)
    accuracy = require_accuracy(profile.family)
    family = family.in_mode(accuracy.mode)
    complexity = shipped_complexity(family)
    assert complexity is not None, f"no multiply-adds ship for {family.name}"
    pool = candidates(profile, accuracy)
    by_gmacs = [(complexity.gmacs(family, c.topology), c.top1) for c in pool]
    by_latency = [(c.median_ms, c.top1) for c in pool]

    def beaten(points: Sequence[tuple[float, float]], cost: float, top1: float) -> bool:
        return any(own <= cost and worth >= top1 for own, worth in points)

    return Beaten(
        family=profile.family,
        rivals=len(zoo.measured),
        by_gmacs=sum(beaten(by_gmacs, row.gmacs, row.top1) for row in zoo.measured),
        by_latency=sum(beaten(by_latency, row.latency_ms or 0.0, row.top1) for row in zoo.measured),
        rows=honest(profile, accuracy, budgets(profile), zoo=zoo, family=family),
    )


def budgets(profile: Profile) -> list[Budget]:
    """Deadlines from what the fastest topology just keeps to what the slowest does."""
    bounds = sorted(cost.bound_ms for cost in profile.costs)
    ratio = bounds[-1] / bounds[0]
    # A third digit would be noise; rounded up, so that the fastest topology keeps the first one.
    steps = [bounds[0] * ratio ** (index / (BUDGETS - 1)) for index in range(BUDGETS)]
    return [Budget(latency_ms=round(1.005 * step, 1)) for step in steps]


def reading(zoo: Zoo, beaten: Sequence[Beaten], quiet: Quiet | None) -> list[str]:
    drift = zoo.drift
    groups = (
        "All networks were measured in one group."
        if drift is None
        else f"Medians of the reference, `{zoo.reference}`, lie {drift:.1%} apart between "
        f"{len(zoo.groups)} groups"
        + (
            ": differences as small as that between networks of two groups are none."
            if drift
            else "."
        )
    )
    lines = [noise(quiet), groups]
    if drift is not None and drift > DRIFT:
        lines.append("**The machine changed between groups.**")
    lines.extend(
        f"`{one.family}`: of {one.rivals} individually trained networks its topologies equal or beat "
        f"{one.by_gmacs} in accuracy at no more multiply-adds, and {one.by_latency} at no more median "
        f"latency here. Under {one.worse} of {len(one.rows)} budgets an individually trained network is "
        "more accurate."
        for one in beaten
    )
    return lines


def network_rows(zoo: Zoo) -> list[list[str]]:
    on_front = front(zoo)
    energy = any(row.energy_mj is not None for row in zoo.measured)
    rows = []
    for row in sorted(zoo.measured, key=lambda row: row.latency_ms or 0.0):
        assert row.cost is not None
        cost, shape = row.cost, row.input_shape or (0, 0, 0)
        name = f"`{row.name}`"
        rows.append(
            [
                f"**{name}**" if row.name in on_front else name,
                f"{shape[1]}",
                f"{row.gmacs:.2f}",
                f"{row.params / 1e6:.1f}",
                f"{row.top1:.2f}",
                f"{cost.latency_ms:.1f} ({cost.latency_low_ms:.1f} to {cost.latency_high_ms:.1f})",
                f"{cost.bound_ms:.1f}",
                f"{cost.samples}",
                *(
                    [f"{cost.energy_mj:.0f}" if cost.energy_mj is not None else ""]
                    if energy
                    else []
                ),
            ]
        )
    return rows


def network_columns(zoo: Zoo) -> list[str]:
    energy = any(row.energy_mj is not None for row in zoo.measured)
    columns = ["network", "side", "GMACs", "M params", "top-1", "median, ms (95 %)", "bound, ms"]
    return [*columns, "samples", *(["mJ"] if energy else [])]


def front(zoo: Zoo) -> set[str]:
    """Those that no other one beats in accuracy at no more median latency."""
    found = set()
    best = -1.0
    for row in sorted(zoo.measured, key=lambda row: (row.latency_ms or 0.0, -row.top1)):
        if row.top1 > best:
            found.add(row.name)
            best = row.top1
    return found


def topology_rows(profile: Profile) -> list[list[str]]:
    """The topologies on the front of accuracy over the bound."""
    _, steps = staircase(candidates(profile, require_accuracy(profile.family)))
    return [
        [
            f"`{step.topology}`",
            f"{step.top1:.2f}",
            f"{step.median_ms:.1f}",
            f"{step.latency_ms:.1f}",
        ]
        for step in steps
    ]


def baseline_rows(rows: Sequence[Beside]) -> list[list[str]]:
    def cells(beside: Beside, which: str) -> list[str]:
        network = getattr(beside, which)
        if network is None:
            return ["none", "", ""]
        points = getattr(beside, f"{which}_points")
        star = "" if network.alone else "*"
        return [
            f"`{network.name}`",
            f"{network.top1:.2f}{star}, {network.latency_ms:.1f} ms",
            "" if points is None else f"{'**' * (points < 0)}{points:+.2f}{'**' * (points < 0)}",
        ]

    return [
        [
            f"{row.budget.latency_ms:g} ms",
            f"`{row.ours.topology}`" if row.ours else "none fits",
            f"{row.ours.top1:.2f}, {row.ours.median_ms:.1f} ms" if row.ours else "",
            *cells(row, "best"),
            *cells(row, "nearest"),
        ]
        for row in rows
    ]


BASELINE_COLUMNS = (
    "budget",
    "ours",
    "top-1, median",
    "best that fits",
    "top-1, median",
    "points",
    "same latency",
    "top-1, median",
    "points",
)

BASELINE = (
    "A budget is held against the bound: that of the 99th percentile, or the largest sample where "
    "there are fewer than 473. *Best that fits*: the most accurate individually trained network within "
    "the same budget. *Same latency*: the most accurate of those whose median is within 5 % of ours, or "
    "the one with the nearest. *Points*: top-1 of ours less theirs; below zero, bold, the individually "
    "trained network is more accurate."
)


def page(options: argparse.Namespace) -> None:
    zoo = load(Zoo, options.zoo)
    profiles = [load(Profile, path) for path in options.profiles]
    path = noted(options.zoo)
    quiet = msgspec.json.decode(path.read_bytes(), type=Quiet) if path.is_file() else None
    beaten = [compare(profile, zoo) for profile in profiles]
    conditions = zoo.conditions
    tables: dict[str, Sequence[str]] = {
        "Individually trained networks": [
            *pages.table(network_columns(zoo), network_rows(zoo)),
            "",
            f"Top-1: {zoo.source}; of the anchors: "
            f"{next((row.source for row in zoo.rows if row.source), 'the same')}. *Side*: of the image. "
            "Bold: on the front of accuracy over median latency.",
        ]
    }
    for profile, one in zip(profiles, beaten, strict=True):
        tables[f"The honest baseline of {profile.family}"] = [
            *pages.table(BASELINE_COLUMNS, baseline_rows(one.rows)),
            "",
            BASELINE,
        ]
        tables[f"The front of {profile.family}"] = pages.table(
            ("topology", "top-1", "median, ms", "bound, ms"), topology_rows(profile)
        )
    tables["Groups"] = pages.table(
        ("networks", "reference, ms (95 %)", "duration, s", "steady"),
        [
            [
                ", ".join(f"`{name}`" for name in group.names[1:]) or "the reference alone",
                f"{group.reference_ms:.1f} ({group.reference_low_ms:.1f} to "
                f"{group.reference_high_ms:.1f})",
                f"{group.duration_s:.0f}",
                "yes" if group.steady else "no",
            ]
            for group in zoo.groups
        ],
    )
    missing = [f"`{row.name}`: {row.reason}." for row in zoo.rows if row.reason]
    if zoo.energy_reason:
        missing.append(f"Energy: {zoo.energy_reason}.")
    text = pages.page(
        "One stitched network against individually trained ones, on this device",
        f"Random weights, {conditions.backend} {conditions.precision}, batch {conditions.batch}, "
        "published accuracies; each network at the resolution of its accuracy.",
        reading=reading(zoo, beaten, quiet),
        machine=f"{conditions.hardware}, {conditions.threads} threads.",
        versions={**conditions.versions, "timm": zoo.timm},
        command=quiet.command if quiet else "edgestitch zoo",
        sections=tables,
        missing=missing or ["Nothing that was asked for."],
    )
    print(text)
    (options.out or pages.result_path("zoo", conditions.hardware)).write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    measuring = verbs.add_parser("measure", help="Measure the networks.")
    measuring.add_argument("--zoo", type=Path, default=Path("zoo.json"))
    measuring.add_argument("--device", default="auto")
    measuring.add_argument("--backend", default="auto")
    measuring.add_argument("--precision", default="fp32")
    measuring.add_argument("--models", action="append", help="Patterns; without, the subset above.")
    measuring.add_argument("--min-samples", type=int, default=200)
    measuring.add_argument("--time-cap-s", type=float, default=480)
    measuring.add_argument("--group", type=int, default=GROUP)
    measuring.set_defaults(run=measure)
    writing = verbs.add_parser("page", help="Write the page from what was measured.")
    writing.add_argument("profiles", type=Path, nargs="+", help="Of stitched networks.")
    writing.add_argument("--zoo", type=Path, default=Path("zoo.json"))
    writing.add_argument("--out", type=Path)
    writing.set_defaults(run=page)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
