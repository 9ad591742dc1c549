"""Hypothesis strategies for the values that stages exchange."""

from collections.abc import Iterable, Mapping

import msgspec
from hypothesis import strategies as st

from edgestitch.accuracy import Accuracy, TopologyAccuracy
from edgestitch.complexity import AtomComplexity, Complexity
from edgestitch.family import Anchor, Family, Stitching
from edgestitch.profile import (
    Certificate,
    Composition,
    Conditions,
    Cost,
    Load,
    Profile,
    Protocol,
)
from edgestitch.schedule import QUANTITIES, Budget, Candidate, Choice, Plan
from edgestitch.topology import Run, Topology

texts = st.text(max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-6, max_value=1e6)
counts = st.integers(min_value=0, max_value=2**53)
# Few different values, so that ties, which are where a rule can go wrong, are common.
few = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])
few_or_none = st.one_of(st.none(), few)
anchor_names = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,5}", fullmatch=True)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    start = draw(st.integers(0, 40))
    return Run(draw(anchor_names), start, start + draw(st.integers(1, 40)))


topologies = st.builds(Topology, st.lists(runs(), min_size=1, max_size=4).map(tuple))


@st.composite
def families(draw: st.DrawFn) -> Family:
    """Families of one to four anchors of up to eight blocks, any window and stride."""
    depth = draw(st.integers(1, 8))
    names = draw(st.lists(anchor_names, min_size=1, max_size=4, unique=True))
    return Family(
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,8}", fullmatch=True)),
        anchors=tuple(Anchor(name=name, model="any", depth=depth) for name in names),
        stitching=Stitching(window=draw(st.integers(1, 5)), stride=draw(st.integers(1, 5))),
        input_shape=(1, 8, 8),
        num_classes=4,
        mean=(0.5,),
        std=(0.5,),
    )


@st.composite
def family_subsets(draw: st.DrawFn) -> tuple[Family, list[Topology]]:
    """A family and some of its topologies."""
    family = draw(families())
    return family, draw(st.lists(st.sampled_from(family.topologies), min_size=1, unique=True))


def budgets(values: st.SearchStrategy[float] = positive) -> st.SearchStrategy[Budget]:
    return st.builds(Budget, **dict.fromkeys(QUANTITIES, st.none() | values))


def candidates(values: st.SearchStrategy[float] = few) -> st.SearchStrategy[Candidate]:
    return st.builds(
        Candidate,
        topology=topologies.map(str),
        top1=values,
        median_ms=values,
        latency_ms=values,
        energy_mj=st.none() | values,
        power_w=st.none() | values,
    )


pools = st.lists(candidates(), min_size=1, max_size=8, unique_by=lambda c: c.topology)
bounds = st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 4.0])
tight_budgets = budgets(bounds)

accuracy_rows = st.lists(
    st.builds(
        TopologyAccuracy, topology=texts, top1=finite, low=finite, high=finite, correct=counts
    ),
    max_size=3,
).map(tuple)
modes = st.sampled_from(["corrected", "reference"])
accuracies = st.one_of(
    st.builds(
        Accuracy,
        family=texts,
        mode=modes,
        network=texts,
        data=texts,
        num_images=counts,
        rows=accuracy_rows,
    ),
    st.builds(
        Accuracy,
        family=texts,
        origin=st.just("published"),
        source=st.text(min_size=1, max_size=12),
        mode=modes,
        network=st.none() | texts,
        data=st.none() | texts,
        num_images=counts,
        rows=accuracy_rows,
    ),
)

complexities = st.builds(
    Complexity,
    family=texts,
    family_digest=texts,
    atoms=st.dictionaries(texts, st.builds(AtomComplexity, macs=counts, params=counts), max_size=3),
)

plans = st.builds(
    Plan,
    family=texts,
    network=st.none() | texts,
    profile=texts,
    accuracy=texts,
    origin=st.sampled_from(["measured", "published"]),
    estimated=st.booleans(),
    resident=st.lists(candidates(finite), min_size=1, max_size=3).map(tuple),
    choices=st.lists(st.builds(Choice, budget=budgets(), topology=texts), max_size=2).map(tuple),
)

artifacts = st.one_of(accuracies, complexities, plans)

loads = st.one_of(
    st.just(Load()),
    st.builds(Load, kind=st.just("paced"), rate_hz=st.floats(0.1, 1e4)),
    st.builds(Load, kind=st.just("after-idle"), gap_ms=st.floats(0.1, 1e4)),
)
certificates = st.builds(
    Certificate,
    held_out=st.integers(1, 100),
    median_error=positive,
    p95_error=positive,
    factor=positive,
    spread=positive,
    confidence=st.floats(0.5, 1),
    costs=st.dictionaries(texts, positive, max_size=3),
)


def cost(
    topology: str,
    *,
    latency: float = 1.0,
    bound: float = 1.0,
    energy: float | None = None,
    samples: int = 500,
) -> Cost:
    """A measured cost; `bound` is what a deadline is held against."""
    p99 = bound if samples >= 473 else None
    return Cost(
        topology=topology,
        latency_ms=latency,
        latency_low_ms=latency,
        latency_high_ms=latency,
        p99_ms=p99,
        p99_high_ms=p99,
        max_ms=bound,
        energy_mj=energy,
        samples=samples,
        origin="measured",
    )


def conditions(**changes: object) -> Conditions:
    """Made-up conditions, with these changes."""
    plain = Conditions(
        device="cpu",
        hardware="a CPU of 2 cores",
        power_mode=None,
        backend="eager",
        precision="fp32",
        batch=1,
        threads=1,
        versions={"torch": "2.8.0"},
    )
    return msgspec.structs.replace(plain, **changes)


def composition(certificate: Certificate) -> Composition:
    """A composition of the toy family that this certificate judges."""
    return Composition(
        designed=("a:0:3",),
        validated=("b:0:3",),
        classes={"a:0": "a:0", "a:1": "a:0"},
        latency=certificate,
        bound=certificate,
        target=0.05,
        noise=0.01,
    )


def profile(
    costs: Iterable[Cost], *, family: str = "toy", network: str | None = "weights"
) -> Profile:
    """A profile of made-up conditions with these costs."""
    return Profile(
        family=family,
        network=network,
        conditions=conditions(),
        protocol=Protocol(
            precision=0.02,
            min_samples=473,
            time_cap_s=60.0,
            seed=0,
            duration_s=1.5,
            steady=True,
            capped=False,
        ),
        segments=("a:stem+a:0:3+a:head",),
        meter="none",
        energy_reason="no counter",
        date="2025-01-31",
        samples_digest="samples",
        costs=tuple(costs),
    )


def accuracy(
    top1: Mapping[str, float], *, family: str = "toy", network: str = "weights"
) -> Accuracy:
    """The accuracy of topologies, by name, on a thousand images."""
    return Accuracy(
        family=family,
        network=network,
        data="images",
        num_images=1000,
        rows=tuple(
            TopologyAccuracy(
                topology=name, top1=value, low=value, high=value, correct=int(10 * value)
            )
            for name, value in top1.items()
        ),
    )


@st.composite
def measured(draw: st.DrawFn) -> tuple[Profile, Accuracy]:
    """A profile and an accuracy of the same topologies."""
    names = draw(st.lists(topologies.map(str), min_size=1, max_size=8, unique=True))
    costs = [
        cost(name, latency=draw(few), bound=draw(few), energy=draw(few_or_none)) for name in names
    ]
    return profile(costs), accuracy({name: draw(few) for name in names})
