"""The switch matrix: what it costs to go from one topology to another."""

from collections.abc import Sequence

from edgestitch.switches import SwitchMatrix, Transition

from .markup import Column, folded, framed, numbers, paragraph, section, table, text
from .units import decimals, format_interval, format_ms, format_number, plural

FULL = 1.5
"""Times as slow as the steady state, from which on a cell has its full colour."""


def switches_section(matrix: SwitchMatrix | None) -> str:
    if matrix is None:
        return ""
    if not matrix.transitions:
        words = f"Only {len(matrix.topologies)} topology is resident: there is nothing to switch."
        return section("Switches", paragraph(words), "switches")
    content = paragraph(_said(matrix)) + _heat(matrix) + folded("Show the numbers", _all(matrix))
    return section("Switches", content, "switches")


def _said(matrix: SwitchMatrix) -> str:
    hosts = [one.switch_us.median for one in matrix.transitions]
    worst = max(matrix.transitions, key=lambda one: one.ratio.median)
    return (
        f"A switch takes the host {_us(min(hosts))} to {_us(max(hosts))} in the median. The first "
        f"inference after it takes at most {worst.ratio.median:.2f} times as long as the tenth, from "
        f"{worst.before} to {worst.after}. All ordered pairs in random order, each "
        f"{plural(matrix.repeats, 'time', 'times')}, {matrix.date}, {matrix.conditions.label}."
    )


def _us(microseconds: float) -> str:
    return format_ms(microseconds / 1e3)


def _heat(matrix: SwitchMatrix) -> str:
    names = matrix.topologies
    heads = "".join(
        f'<th scope="col" class="name">{text(name).replace("+", "+<wbr>")}</th>' for name in names
    )
    rows = "".join(
        f'<tr><th scope="row" class="name">{text(before)}</th>'
        + "".join(_cell(matrix.by_pair.get((before, after))) for after in names)
        + "</tr>"
        for before in names
    )
    return framed(
        "From the row to the column: first inference over the tenth, and the host's time of the switch",
        f'<thead><tr><th scope="col" class="name">From, to</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody>",
        "heat",
    )


def _cell(one: Transition | None) -> str:
    if one is None:
        return '<td class="number missing"><span aria-label="the same topology">\N{EM DASH}</span></td>'
    heat = min(1.0, max(0.0, (one.ratio.median - 1) / (FULL - 1)))
    return (
        f'<td class="number" style="--heat:{heat:.3f}">{one.ratio.median:.2f}'
        f'<span class="small">{text(_us(one.switch_us.median))}</span></td>'
    )


def _all(matrix: SwitchMatrix) -> str:
    ones: Sequence[Transition] = matrix.transitions
    places = decimals([one.first_ms.low for one in ones])
    columns = [
        Column("From", [one.before for one in ones], "name"),
        Column("To", [one.after for one in ones], "name"),
        Column("Switch", [_us(one.switch_us.median) for one in ones]),
        Column(
            "95 % interval (\N{MICRO SIGN}s)",
            [
                f"{format_number(one.switch_us.low)} to {format_number(one.switch_us.high)}"
                for one in ones
            ],
            "interval",
        ),
        numbers("First (ms)", [one.first_ms.median for one in ones]),
        Column(
            "95 % interval",
            [format_interval(one.first_ms.low, one.first_ms.high, places) for one in ones],
            "interval",
        ),
        numbers("Tenth (ms)", [one.steady_ms.median for one in ones]),
        Column("First over tenth", [f"{one.ratio.median:.3f}" for one in ones]),
        Column(
            "95 % interval",
            [format_interval(one.ratio.low, one.ratio.high, 3) for one in ones],
            "interval",
        ),
    ]
    return table("Every ordered pair; medians", columns)
