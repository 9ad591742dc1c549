"""Where the time of a call goes, and how well the sum of parts predicts what was not measured."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from edgestitch.family import Family, Mode
from edgestitch.profile import Attribution, Certificate, Composition, Cost, Profile

from .markup import Column, choices, each, folded, numbers, paragraph, picture, section, table
from .units import decimals, format_interval, format_ms, plural

if TYPE_CHECKING:
    import numpy as np

    from edgestitch.compose import Terms

CALL = "Call"
BORDERS = "Borders between segments"
TOLERANCE = 1e-6
MODES: tuple[Mode, ...] = ("corrected", "reference")


class Part(NamedTuple):
    """One part of a topology's time."""

    label: str
    ms: float


@dataclass(frozen=True)
class Breakdown:
    """The parts of each topology's time, and where that is known from."""

    source: str
    parts: Mapping[str, tuple[Part, ...]]
    """Of each topology, in the order in which they run."""


def breakdown_section(family: Family | None, profile: Profile | None) -> tuple[str, Any]:
    """The section and what the page's script needs for it."""
    if family is None or profile is None:
        return "", None
    found = break_down(family, profile)
    if isinstance(found, str):
        return section("Where the time goes", paragraph(found), "breakdown"), None
    content = (
        paragraph(found.source) + '<div class="parts"><p><label for="parts-of">Topology</label> '
        '<select id="parts-of" hidden></select></p><div id="parts" aria-live="polite"></div></div>'
        + folded("Show all topologies", _parts_table(found, profile))
    )
    return section("Where the time goes", content, "breakdown"), _chosen(found, profile)


def _chosen(found: Breakdown, profile: Profile) -> dict[str, Any]:
    """Of each topology, slowest last, its parts with their times in words and shares."""
    return {name: _bars(found.parts[name], profile.by_topology[name]) for name in _ordered(found)}


def _ordered(found: Breakdown) -> list[str]:
    return sorted(found.parts, key=lambda name: sum(part.ms for part in found.parts[name]))


def _bars(parts: Sequence[Part], cost: Cost) -> dict[str, Any]:
    total = sum(part.ms for part in parts)
    bars = [[part.label, format_ms(part.ms), part.ms / total if total else 0] for part in parts]
    away = 100 * (total / cost.latency_ms - 1)
    said = {
        "measured": f"Measured as a whole {format_ms(cost.latency_ms)}; the parts differ by {away:+.1f} %.",
        "composed": f"Composed of these: {format_ms(cost.latency_ms)}; not measured as a whole.",
        "estimated": f"Estimated as a whole {format_ms(cost.latency_ms)}.",
    }
    return {"bars": bars, "total": format_ms(total), "note": said[cost.origin]}


def _parts_table(found: Breakdown, profile: Profile) -> str:
    names = _ordered(found)
    labels = list(dict.fromkeys(part.label for name in names for part in found.parts[name]))
    of = {name: {part.label: part.ms for part in found.parts[name]} for name in names}
    columns = [
        Column("Topology", names, "name"),
        *(numbers(label, [of[n].get(label) for n in names], missing="") for label in labels),
        numbers("Sum", [sum(of[n].values()) for n in names]),
        numbers("Median", [profile.by_topology[n].latency_ms for n in names]),
        Column("Median is", [profile.by_topology[n].origin for n in names], "role"),
    ]
    return table("Parts of a call in milliseconds", columns)


def break_down(family: Family, profile: Profile) -> Breakdown | str:
    """The parts of each topology's time; or why they are not known."""
    if profile.estimated:
        return "The latencies are estimates: which part takes what was not measured."
    if profile.attribution is not None and (found := _attributed(family, profile)):
        return found
    composition = profile.composition
    if composition is None:
        return (
            "Every topology was measured as a whole, and the backend sets no marks between "
            "segments: which part takes what is not known. A profile that composes costs knows it, "
            "and so does one of a backend on a GPU."
        )
    summed = _summed(family, profile, composition)
    if summed is None:
        return (
            "The topologies were cut otherwise than the family by itself is, so how many borders "
            "each has is not known here, and the sum cannot be taken apart."
        )
    return _composed(composition, summed)


# --- from marks between segments ----------------------------------------------------------------


def _attributed(family: Family, profile: Profile) -> Breakdown | None:
    found, attribution = _as_cut(family, profile), profile.attribution
    if found is None or attribution is None:
        return None
    _, chains = found
    parts = {
        name: tuple(_marked(chain, attribution))
        for name, chain in chains.items()
        if all(segment in attribution.segments_ms for segment in chain)
    }
    if not parts:
        return None
    source = (
        "Measured by marks between segments, which add "
        f"{100 * attribution.overhead:.1f} % to a call; medians, of topologies that were marked. "
        f"{CALL} is what no segment has: copies, launch, waiting."
    )
    return Breakdown(source, parts)


def _marked(chain: Sequence[str], attribution: Attribution) -> Iterator[Part]:
    for segment in chain:
        yield Part(segment, attribution.segments_ms[segment])
    yield Part(CALL, attribution.rest_ms)


def _as_cut(
    family: Family, profile: Profile
) -> tuple[Family, Mapping[str, tuple[str, ...]]] | None:
    """The family as it was profiled, and the segments of each topology.

    The mode is that of the accuracies, and costs may be of the other one, whose final norms are cut
    otherwise. `None`: neither is cut as the profile is.
    """
    from edgestitch.cut import cut_topologies  # NumPy, which only these sections need

    names = [cost.topology for cost in profile.costs]
    for mode in MODES:
        same = family.in_mode(mode)
        cut = cut_topologies(same, names)
        if set(cut.atoms) == set(profile.segments):
            return same, cut.chains
    return None


# --- from the sum that costs are composed of ----------------------------------------------------


class Summed(NamedTuple):
    """What the costs of a profile are sums of."""

    atoms: Mapping[str, tuple[str, ...]]
    """Of each topology."""
    terms: "Terms"


def _summed(family: Family, profile: Profile, composition: Composition) -> Summed | None:
    """`None`: how the topologies were cut is not known."""
    from edgestitch.compose import terms

    found = _as_cut(family, profile)
    if found is None:
        return None
    family, chains = found
    atoms = {name: family.atoms(name) for name in chains}
    borders = {name: len(chain) - 1 for name, chain in chains.items()}
    return Summed(atoms, terms(atoms, composition.classes, borders))


def _composed(composition: Composition, summed: Summed) -> Breakdown:
    import numpy as np

    terms = summed.terms
    costs = np.array([composition.latency.costs[column] for column in terms.columns])
    space = _told_apart(terms.rows(composition.designed))
    parts = {}
    for name, atoms in summed.atoms.items():
        (row,) = terms.rows([name])
        groups = _groups(atoms, composition.classes, terms.columns, row)
        parts[name] = tuple(_known(groups, costs, space))
    source = (
        f"From the sum that was fitted to {plural(len(composition.designed), 'topology', 'topologies')} "
        "measured as a whole, not from marks inside of a call. What always comes together there cannot "
        "be told apart, and is one part; so blocks have the borders of their segments in them, where "
        "borders are none of their own."
    )
    return Breakdown(source, parts)


def _told_apart(design: "np.ndarray") -> "np.ndarray":
    """Directions [n, columns]: a sum of terms is known from measured rows if it is one of these."""
    import numpy as np

    _, sizes, directions = np.linalg.svd(design, full_matrices=False)
    space: np.ndarray = directions[sizes > TOLERANCE * sizes[0]]
    return space


def _groups(
    atoms: Sequence[str],
    classes: Mapping[str, str],
    columns: Sequence[str],
    row: "np.ndarray",
) -> dict[str, "np.ndarray"]:
    """The columns of a topology by the part that they belong to, as vectors that add up to its row."""
    import numpy as np

    groups: dict[str, np.ndarray] = {}
    place = {column: index for index, column in enumerate(columns)}
    counted = Counter((_label(atom), classes[atom]) for atom in atoms)
    for (label, column), number in {
        (CALL, "call"): row[place["call"]],
        **counted,
        (BORDERS, "border"): row[place["border"]],
    }.items():
        if number:
            groups.setdefault(label, np.zeros(len(columns)))[place[column]] += number
    return groups


def _label(atom: str) -> str:
    front, _, back = atom.partition("+")
    anchor, _, role = front.partition(":")
    if back:
        return "Stitching layer"
    if role.isdigit():
        return f"Blocks of {anchor}"
    return f"{ {'stem': 'Stem', 'head': 'Head', 'norm': 'Norm'}.get(role, role) } of {anchor}"


def _known(
    groups: Mapping[str, "np.ndarray"], costs: "np.ndarray", space: "np.ndarray"
) -> Iterator[Part]:
    """The parts whose cost is known; those that cannot be told apart as one.

    Where borders cannot be told from what lies between them, each part has as many of them in it as
    make it known: a block, cut from the next one wherever it is, has one.
    """
    import numpy as np

    def unknown(vector: np.ndarray) -> np.ndarray:
        away: np.ndarray = vector - space.T @ (space @ vector)
        return away if np.linalg.norm(away) > TOLERANCE * np.linalg.norm(vector) else 0 * vector

    border = groups.get(BORDERS, 0 * costs)
    away = unknown(border)
    folded_in = away.any()
    rest = []
    left = float(sum(vector @ costs for vector in groups.values()))
    for label, vector in groups.items():
        if label == BORDERS and folded_in:
            continue
        share = -(unknown(vector) @ away) / (away @ away) if folded_in else 0.0
        whole = vector + share * border
        if unknown(whole).any():
            rest.append(label)
            continue
        left -= float(whole @ costs)
        yield Part(label, float(whole @ costs))
    if rest:
        yield Part(_listed(rest), left)


def _listed(labels: Sequence[str]) -> str:
    """`Call, stem of ti and head of ti`."""
    low = [labels[0], *(label[0].lower() + label[1:] for label in labels[1:])]
    return low[0] if len(low) == 1 else f"{', '.join(low[:-1])} and {low[-1]}"


# --- composed against measured ------------------------------------------------------------------


class Pair(NamedTuple):
    """What a measured topology costs, and what the sum says."""

    topology: str
    held_out: bool
    measured: float
    low: float
    high: float
    composed: float

    @property
    def error(self) -> float:
        """Of the sum, relative to what was measured; in percent."""
        return 100 * (self.composed / self.measured - 1)


def composed_section(family: Family | None, profile: Profile | None) -> tuple[str, Any]:
    """The section and what the page's script draws in it."""
    composition = profile.composition if profile is not None else None
    if family is None or profile is None or composition is None:
        return "", None
    summed = _summed(family, profile, composition)
    if summed is None:
        why = "The topologies were cut otherwise than the family by itself is: their sums are not known here."
        return section("Composed against measured", paragraph(why), "composed"), None
    drawn, tables = {}, ""
    judged = [
        f"{plural(profile.number('composed'), 'topology is', 'topologies are')} composed. Only those "
        f"that were held out at random from the fit judge the sum, "
        f"{composition.latency.held_out} of them."
    ]
    for label, unit, certificate, quantity in _quantities(composition):
        pairs = _pairs(profile, composition, summed, certificate, quantity)
        if pairs:
            drawn[label] = _drawn(pairs, certificate, unit)
            judged.append(_judged(certificate, label))
            tables += _pairs_table(pairs, certificate, label, unit)
    label = _describe(_pairs(profile, composition, summed, composition.latency, _latency))
    content = paragraph(" ".join(judged))
    content += picture("plot-composed", label, controls=choices("quantities", "Error of"))
    content += folded("Show the numbers", tables)
    return section("Composed against measured", content, "composed"), drawn


Known = tuple[float | None, float | None, float | None]
"""What was measured of a quantity, and its interval."""


def _quantities(
    composition: Composition,
) -> Iterator[tuple[str, str, Certificate, Callable[[Cost], Known]]]:
    yield "Latency", "ms", composition.latency, _latency
    yield "p99 bound", "ms", composition.bound, lambda cost: (cost.bound_ms, None, None)
    if composition.energy is not None:
        yield "Energy", "mJ", composition.energy, _energy


def _latency(cost: Cost) -> Known:
    return cost.latency_ms, cost.latency_low_ms, cost.latency_high_ms


def _energy(cost: Cost) -> Known:
    return cost.energy_mj, cost.energy_low_mj, cost.energy_high_mj


def _pairs(
    profile: Profile,
    composition: Composition,
    summed: Summed,
    certificate: Certificate,
    quantity: Callable[[Cost], Known],
) -> list[Pair]:
    from edgestitch.compose import predict

    held_out = set(composition.validated)
    names = [n for n in (*composition.designed, *composition.validated) if n in profile.by_topology]
    pairs = []
    for name, composed in zip(names, predict(summed.terms, certificate.costs, names), strict=True):
        measured, low, high = quantity(profile.by_topology[name])
        if measured is not None:
            known = (measured if low is None else low, measured if high is None else high)
            pairs.append(Pair(name, name in held_out, measured, *known, float(composed)))
    return sorted(pairs, key=lambda pair: pair.measured)


def _judged(certificate: Certificate, what: str) -> str:
    return (
        f"{what}: the sum errs by {100 * certificate.median_error:.2g} % in the median and by "
        f"{100 * certificate.p95_error:.2g} % at the 95th percentile; a new one is within "
        f"{100 * certificate.spread:.2g} % either way with a confidence of "
        f"{100 * certificate.confidence:.0f} %."
    )


def _drawn(pairs: Sequence[Pair], certificate: Certificate, unit: str) -> dict[str, Any]:
    return {
        "unit": unit,
        "spread": 100 * certificate.spread,
        "groups": [
            {
                "name": name,
                "ids": [pair.topology for pair in group],
                "x": [pair.measured for pair in group],
                "y": [pair.error for pair in group],
                # The error of what was measured moves the sum's error the other way.
                "low": [
                    100 * pair.composed * (1 / pair.measured - 1 / pair.high) for pair in group
                ],
                "high": [
                    100 * pair.composed * (1 / pair.low - 1 / pair.measured) for pair in group
                ],
            }
            for name, group in (
                ("fitted to", [pair for pair in pairs if not pair.held_out]),
                ("held out", [pair for pair in pairs if pair.held_out]),
            )
        ],
    }


def _describe(pairs: Sequence[Pair]) -> str:
    held_out = [abs(pair.error) for pair in pairs if pair.held_out]
    worst = f"; of those held out the largest is {max(held_out):.1f} %" if held_out else ""
    return (
        f"Scatter plot of {plural(len(pairs), 'measured topology', 'measured topologies')}: error of "
        f"the composed latency over the measured one{worst}. The table below holds the same numbers."
    )


def _pairs_table(pairs: Sequence[Pair], certificate: Certificate, quantity: str, unit: str) -> str:
    places = decimals([pair.low for pair in pairs])
    within = [abs(pair.measured / pair.composed - 1) <= certificate.spread for pair in pairs]
    columns = [
        Column("Topology", [pair.topology for pair in pairs], "name"),
        Column("Use", ["held out" if pair.held_out else "fitted to" for pair in pairs], "role"),
        numbers(f"Measured ({unit})", [pair.measured for pair in pairs]),
        Column(
            "95 % interval",
            [format_interval(pair.low, pair.high, places) for pair in pairs],
            "interval",
        ),
        numbers(f"Composed ({unit})", [pair.composed for pair in pairs]),
        Column("Error (%)", each([p.error for p in pairs], lambda error: f"{error:+.2f}")),
        Column("Within the interval", ["yes" if inside else "no" for inside in within], "role"),
    ]
    css = ["front" if pair.held_out else "" for pair in pairs]
    return table(f"{quantity}: measured topologies beside their sums", columns, css)
