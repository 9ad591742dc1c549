"""One self-contained HTML page: what each topology is worth, what it costs, what a run did.

The page loads nothing. It is made of any mix of artifacts, and says of what is missing why it is.

    gather       artifacts from files, and what ships for their family
    evidence     the artifacts, checked to be of one network
    rows         what is known of each topology, joined
    pictures     accuracy against costs and the slider, as data for the page's script
    tables, individuals, breakdown, timeline, switching      the sections
    page.html, page.css, page.js                             the page that they are put into
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgestitch.accuracy import Accuracy
from edgestitch.artifact import write
from edgestitch.complexity import Complexity
from edgestitch.errors import ArtifactError, EdgestitchError
from edgestitch.family import Family
from edgestitch.peers import Peers
from edgestitch.profile import Profile
from edgestitch.runlog import RunLog
from edgestitch.schedule import Plan
from edgestitch.switches import SwitchMatrix
from edgestitch.zoo import Zoo

from . import words
from .breakdown import breakdown_section, composed_section
from .evidence import Evidence, RunRow
from .gather import KINDS, Gathered, gather, with_what_ships
from .individuals import individuals_section
from .markup import as_json, choices, definitions, paragraph, picture, section, text
from .pictures import draw
from .rows import Row, join_rows
from .switching import switches_section
from .tables import (
    conditions_section,
    digests,
    plan_section,
    session_section,
    topologies_section,
    zoo_section,
)
from .timeline import timeline_section
from .units import (
    format_budget,
    format_count,
    format_gmacs,
    format_interval,
    format_mj,
    format_ms,
    format_number,
    format_percent,
    format_ran,
    format_w,
)

__all__ = [
    "Evidence",
    "Gathered",
    "RunRow",
    "format_budget",
    "format_count",
    "format_gmacs",
    "format_interval",
    "format_mj",
    "format_ms",
    "format_number",
    "format_percent",
    "format_ran",
    "format_w",
    "gather",
    "render",
    "report_files",
    "write_report",
]


def write_report(
    path: Path,
    family: Family | None = None,
    accuracy: Accuracy | None = None,
    *,
    profile: Profile | None = None,
    plan: Plan | None = None,
    complexity: Complexity | None = None,
    peers: Peers | None = None,
    zoo: Zoo | None = None,
    switches: SwitchMatrix | None = None,
    logs: Sequence[RunLog] = (),
    runs: Sequence[RunRow] = (),
) -> None:
    """Writes the page of `render`, whole or not at all."""
    page = render(
        family,
        accuracy,
        profile=profile,
        plan=plan,
        complexity=complexity,
        peers=peers,
        zoo=zoo,
        switches=switches,
        logs=logs,
        runs=runs,
    )
    write(path, page.encode())


def report_files(
    out: Path,
    paths: Iterable[Path],
    *,
    named: Iterable[tuple[str, Path]] = (),
    family: str | None = None,
) -> tuple[str, ...]:
    """Writes the page of the artifacts in files, and returns the files that it makes nothing of.

    Args:
        out: the page.
        paths: artifacts of any kind.
        named: artifacts with the argument of `render` that each is for.
        family: a shipped recipe's name or a TOML file; without, that of the artifacts.

    Raises:
        ArtifactError, MismatchError, ValueError: as `gather` and `render` say.
    """
    gathered = gather(paths, named)
    if not gathered.found and family is None:
        raise ArtifactError(
            f"a report makes nothing of {', '.join(gathered.left_out)}; it takes {', '.join(KINDS)}"
        )
    write_report(out, **with_what_ships(gathered.found, family))
    return gathered.left_out


def render(
    family: Family | None = None,
    accuracy: Accuracy | None = None,
    *,
    profile: Profile | None = None,
    plan: Plan | None = None,
    complexity: Complexity | None = None,
    peers: Peers | None = None,
    zoo: Zoo | None = None,
    switches: SwitchMatrix | None = None,
    logs: Sequence[RunLog] = (),
    runs: Sequence[RunRow] = (),
) -> str:
    """The report as one HTML page that loads nothing, of whatever is given.

    `peers` are drawn beside the family by multiply-adds, the networks of a `zoo` by what they cost
    on the device.

    Raises:
        ArtifactError: the profile has no topology in it.
        MismatchError: the arguments are of different networks or were made from other artifacts.
        ValueError: nothing that has a cost, or an accuracy, profile or plan without its family.
    """
    evidence = Evidence(
        family=family,
        accuracy=accuracy,
        profile=profile,
        plan=plan,
        complexity=complexity,
        peers=peers,
        zoo=zoo,
        switches=switches,
        logs=tuple(logs),
        runs=tuple(runs),
    )
    evidence.check()
    return _page(evidence)


def _page(evidence: Evidence) -> str:
    rows = join_rows(evidence)
    drawn = draw(evidence, rows)
    timeline, drawn["runs"] = timeline_section(evidence.logs)
    breakdown, drawn["parts"] = breakdown_section(evidence.family, evidence.profile)
    composed, drawn["composed"] = composed_section(evidence.family, evidence.profile)
    content = "\n".join(
        (
            _worth(rows, drawn),
            _missing(evidence, drawn),
            individuals_section(evidence) if rows else "",
            plan_section(evidence.plan, evidence.accuracy),
            session_section(evidence.runs),
            timeline,
            switches_section(evidence.switches),
            breakdown,
            composed,
            _macs(evidence, rows, drawn),
            topologies_section(evidence, rows),
            zoo_section(evidence.zoo),
            conditions_section(evidence.profile),
            _made_from(evidence),
        )
    )
    return _fill(
        title=text(words.title(evidence)),
        name=text(words.name_of(evidence)),
        subtitle=text(words.subtitle(evidence)),
        summary=text(words.summary(evidence, rows)),
        contents=_contents(content),
        content=content,
        picture=as_json(drawn),
        css=_part("page.css"),
        script=_part("page.js"),
        plotly=_plotly(),
    )


def _worth(rows: Sequence[Row], drawn: Mapping[str, Any]) -> str:
    """Accuracy against each cost, with the slider where there are latencies to choose from."""
    axes = [axis["key"] for axis in drawn["axes"]]
    if not axes or (axes == ["macs"] and drawn["macs"]):  # which has a picture of its own
        return ""
    label = words.picture_description(rows, drawn)
    shown = picture("plot", label, controls=choices("axes", "Set against"))
    slider = _part("slider.html") if drawn["pools"] else ""
    # The slider is in the frame of the picture, under its axis.
    framed = f"{shown.removesuffix('</div>')}{slider}</div>"
    content = f'{framed}<p class="note" id="outside" hidden></p>'
    return section("Accuracy against cost", content, "worth")


def _missing(evidence: Evidence, drawn: Mapping[str, Any]) -> str:
    """Why there is no slider."""
    if drawn["pools"] or evidence.family is None:
        return ""
    return paragraph(words.NO_LATENCY if evidence.profile is None else words.NO_ACCURACY)


def _macs(evidence: Evidence, rows: Sequence[Row], drawn: Mapping[str, Any]) -> str:
    family, peers = evidence.family, evidence.peers
    if not drawn["macs"] or family is None:
        return ""
    content = picture(
        "plot-macs", words.macs_description(rows, peers), controls=choices("scales", "Axis")
    )
    if peers:
        content += paragraph(words.macs_note(family, rows, peers))
    return section(words.macs_heading(peers), content, "macs")


def _made_from(evidence: Evidence) -> str:
    items = digests(evidence)
    if not items:
        return ""
    note = paragraph("SHA-256 of each artifact: equal digests, equal content.")
    return section("Made from", note + definitions(items), "made-from", css="digests")


def _contents(content: str) -> str:
    """Links to the sections, in their order."""
    found = re.findall(r'<section id="([^"]+)"[^>]*><h2>(.*?)</h2>', content)
    items = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading in found)
    return f"<ol>{items}</ol>"


def _fill(**parts: str) -> str:
    """The page with each `{{marker}}` replaced by the part of that name."""
    # One pass: what was put in is not searched again, so no data can pose as a marker.
    return re.sub(r"\{\{(\w+)\}\}", lambda marker: parts[marker[1]], _part("page.html"))


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The library that draws, read as a file: the page needs nothing of plotly's Python half."""
    try:
        script = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ImportError, OSError) as error:
        raise EdgestitchError(
            f"the report draws with the plotly.min.js of Python's plotly, which is not here "
            f"({error}); `pip install 'plotly>=6'` brings it"
        ) from error
    return script.replace("</script", "<\\/script")
