"""The division of topologies into segments: the one without copies, and the fastest that fits."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import msgspec
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st

from edgestitch.cut import (
    ChosenCut,
    Cut,
    border_ms,
    choose_cut,
    cut_topologies,
    divide,
    largest_resident,
    part,
    segment_name,
)
from edgestitch.errors import InfeasibleError
from edgestitch.family import Anchor, Family, Stitching
from edgestitch.profile import Certificate, Profile
from edgestitch.recipe import load_family
from tests.strategies import composition, cost, families, family_subsets, profile

# --- without copies --------------------------------------------------------------------------


@st.composite
def chains(draw):
    family, topologies = draw(family_subsets())
    return [family.atoms(topology) for topology in topologies]


@given(chains())
def test_each_chain_is_the_concatenation_of_its_segments(chains):
    for chain, segments in divide(chains).items():
        assert sum(segments, ()) == chain


@given(chains())
def test_no_atom_is_in_two_segments(chains):
    segments = {segment for parts in divide(chains).values() for segment in parts}
    atoms = [atom for segment in segments for atom in segment]
    assert len(set(atoms)) == len(atoms)


@given(chains())
def test_every_chain_uses_a_segment_whole_or_not_at_all(chains):
    parts = divide(chains)
    for segment in {segment for segments in parts.values() for segment in segments}:
        assert all(_whole_or_not_at_all(segment, chain) for chain in parts)


@given(chains())
def test_no_border_can_be_removed(chains):
    parts = divide(chains)
    for segments in parts.values():
        for left, right in pairwise(segments):
            assert not all(_whole_or_not_at_all(left + right, chain) for chain in parts)


@given(chains())
def test_segments_have_different_names(chains):
    segments = {segment for parts in divide(chains).values() for segment in parts}
    assert len({segment_name(segment) for segment in segments}) == len(segments)


@given(families())
def test_one_topology_alone_is_one_segment(family):
    for topology in family.topologies:
        chain = family.atoms(topology)
        assert divide([chain]) == {chain: (chain,)}


@given(chains())
def test_the_order_of_chains_and_their_repetition_do_not_matter(chains):
    assert divide(chains) == divide([*reversed(chains), *chains])


def _whole_or_not_at_all(segment: tuple[str, ...], chain: tuple[str, ...]) -> bool:
    size = len(segment)
    places = range(len(chain) - size + 1)
    whole = sum(chain[place : place + size] == segment for place in places)
    return whole == 1 or not set(segment) & set(chain)


@pytest.mark.parametrize(
    ("atoms", "name"),
    [
        (("ti:stem",), "ti:stem"),
        (("ti:0",), "ti:0"),
        (("ti:0", "ti:1", "ti:2"), "ti:0:3"),
        (("ti:stem", "ti:0", "ti:1"), "ti:stem+ti:0:2"),
        (("ti:5", "ti:6+s:5", "s:5", "s:6", "s:head"), "ti:5+ti:6+s:5+s:5:7+s:head"),
        (("ti:9", "ti:10"), "ti:9:11"),
    ],
)
def test_a_segment_is_named_by_its_atoms(atoms, name):
    assert segment_name(atoms) == name


@given(family_subsets())
def test_a_cut_names_its_segments_and_keeps_every_topology(both):
    family, topologies = both
    cut = cut_topologies(family, map(str, topologies))
    require_whole(family, cut, map(str, topologies))


@given(family_subsets())
def test_a_part_of_a_cut_is_divided_as_it_is_there(both):
    family, topologies = both
    whole = cut_topologies(family, map(str, topologies))
    some = part(whole, [str(topologies[0])])
    assert some.chains == {str(topologies[0]): whole.chains[str(topologies[0])]}
    assert some.atoms.keys() == set(some.chains[str(topologies[0])])


def require_whole(family: Family, cut: Cut, topologies: Iterable[str]) -> None:
    """Each topology's segments are its atoms in order, and no two segments have one name."""
    assert {name: atoms_of(cut, chain) for name, chain in cut.chains.items()} == {
        name: family.atoms(name) for name in topologies
    }
    assert all(segment_name(atoms) == name for name, atoms in cut.atoms.items())
    assert cut.atoms.keys() == {name for chain in cut.chains.values() for name in chain}


def atoms_of(cut: Cut, chain: Iterable[str]) -> tuple[str, ...]:
    return sum((cut.atoms[name] for name in chain), ())


# --- with copies -----------------------------------------------------------------------------

BORDER_MS = 0.5


@dataclass(frozen=True)
class Question:
    """What `choose_cut` is asked, small enough to try every division."""

    family: Family
    topologies: tuple[str, ...]
    atoms_mib: Mapping[str, float]
    segment_mib: float
    shares_weights: bool
    use: Mapping[str, float] | None

    def answer(self, memory_mib: float | None, time_limit_s: float = 60.0) -> ChosenCut:
        return choose_cut(
            self.family,
            self.topologies,
            atoms_mib=self.atoms_mib,
            border_ms=BORDER_MS,
            memory_mib=memory_mib,
            shares_weights=self.shares_weights,
            segment_mib=self.segment_mib,
            use=self.use,
            time_limit_s=time_limit_s,
        )

    def budget(self, factor: float) -> float:
        """That much of what the division without copies takes, in half MiB."""
        return math.floor(2 * factor * self.answer(None).memory_mib) / 2

    def memory(self, segments: Collection[tuple[str, ...]]) -> float:
        """Of different segments, by their atoms."""
        weights = [self.atoms_mib[atom] for atoms in segments for atom in atoms]
        if self.shares_weights:
            weights = [self.atoms_mib[atom] for atom in {a for atoms in segments for a in atoms}]
        return sum(weights) + self.segment_mib * len(segments)

    def latency(self, paths: Sequence[Sequence[object]]) -> float:
        """Mean, of the borders alone."""
        use = dict.fromkeys(self.topologies, 1.0) if self.use is None else self.use
        shares = [use.get(name, 0.0) / sum(use.values()) for name in self.topologies]
        return sum(s * (len(p) - 1) * BORDER_MS for s, p in zip(shares, paths, strict=True))

    def divisions(self, joining: Cut | None = None) -> Iterator[tuple[float, float, int]]:
        """Latency, memory and number of segments of every division, or of those of some segments."""
        ways: list[list[tuple[tuple[str, ...], ...]]] = []
        for name in self.topologies:
            atoms = self.family.atoms(name)
            pieces: list[tuple[str, ...]] = [(atom,) for atom in atoms]
            if joining is not None:
                pieces = [joining.atoms[segment] for segment in joining.chains[name]]
            ways.append([tuple(sum(p, ()) for p in path) for path in compositions(pieces)])
        for paths in product(*ways):
            segments = {segment for path in paths for segment in path}
            yield round(self.latency(paths), 6), self.memory(segments), len(segments)


def compositions(
    chain: Sequence[tuple[str, ...]],
) -> Iterator[tuple[Sequence[tuple[str, ...]], ...]]:
    """Every way to divide a chain."""
    for borders in product([False, True], repeat=len(chain) - 1):
        stops = [place for place, border in enumerate(borders, 1) if border]
        yield tuple(chain[a:b] for a, b in pairwise([0, *stops, len(chain)]))


@st.composite
def questions(draw: st.DrawFn, *, large: bool = False) -> Question:
    """A few topologies; their atoms, or if they are `large` their segments, have few divisions."""
    depth, number = draw(st.sampled_from([(6, 2), (4, 3)] if large else [(2, 2), (3, 2), (1, 3)]))
    family = Family(
        name="small",
        anchors=tuple(Anchor(name=name, model="any", depth=depth) for name in "abc"[:number]),
        stitching=Stitching(window=draw(st.integers(1, 3)), stride=draw(st.integers(1, 2))),
        input_shape=(1, 8, 8),
        num_classes=4,
        mean=(0.5,),
        std=(0.5,),
    )
    names = [topology.name for topology in family.topologies]
    least = 3 if large else 2
    chosen = draw(st.lists(st.sampled_from(names), min_size=least, max_size=5, unique=True))
    chains = cut_topologies(family, chosen).chains.values() if large else map(family.atoms, chosen)
    assume(sum(len(chain) - 1 for chain in chains) <= 12)
    atoms = sorted({atom for name in chosen for atom in family.atoms(name)})
    return Question(
        family=family,
        topologies=tuple(chosen),
        atoms_mib={atom: draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, 4.0])) for atom in atoms},
        segment_mib=draw(st.sampled_from([0.0, 0.5, 2.0])),
        shares_weights=draw(st.booleans()),
        use=draw(
            st.none()
            | st.fixed_dictionaries(
                {name: st.sampled_from([0.0, 1.0, 3.0]) for name in chosen}
            ).filter(lambda use: any(use.values()))
        ),
    )


factors = st.sampled_from([0.75, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0])


@given(questions(), factors)
def test_the_chosen_division_is_the_best_of_all_there_are(question, factor):
    require_best(question, question.budget(factor), question.divisions())


@given(questions(large=True), factors)
def test_the_chosen_division_is_the_best_way_to_join_segments(question, factor):
    base = cut_topologies(question.family, question.topologies)
    require_best(question, question.budget(factor), question.divisions(base))


def require_best(
    question: Question, budget: float, divisions: Iterable[tuple[float, float, int]]
) -> None:
    best = min((division for division in divisions if division[1] <= budget), default=None)
    if best is None:
        with pytest.raises(InfeasibleError):
            question.answer(budget)
        return
    chosen = question.answer(budget)
    latency = question.latency([chosen.cut.chains[name] for name in question.topologies])
    assert (round(latency, 6), chosen.memory_mib, len(chosen.cut.atoms)) == best
    assert (chosen.proven, chosen.gap_ms) == (True, 0.0)


@given(questions(large=True), factors)
def test_a_chosen_division_keeps_every_topology_and_counts_segments_once(question, factor):
    budget = question.budget(factor)
    chosen = answer(question, budget)
    require_whole(question.family, chosen.cut, question.topologies)
    assert chosen.memory_mib == pytest.approx(question.memory(chosen.cut.atoms.values()))
    assert chosen.memory_mib <= budget + 1e-4
    without = question.answer(None)
    assert chosen.without_copies_mib == without.memory_mib
    assert chosen.borders_without_copies == without.borders
    assert chosen.borders == sum(len(chain) - 1 for chain in chosen.cut.chains.values())
    saved = [
        question.latency([one.cut.chains[name] for name in question.topologies])
        for one in (without, chosen)
    ]
    assert chosen.gain_ms == pytest.approx(saved[0] - saved[1])


def answer(question: Question, budget: float) -> ChosenCut:
    """The answer, if there is one."""
    try:
        return question.answer(budget)
    except InfeasibleError:
        reject()


@given(questions())
def test_without_a_budget_nothing_is_copied(question):
    chosen = question.answer(None)
    assert chosen.cut == cut_topologies(question.family, question.topologies)
    assert (chosen.gain_ms, chosen.proven) == (0.0, True)


@given(questions())
def test_with_memory_for_everything_each_topology_is_one_segment(question):
    chosen = question.answer(math.inf)
    used = [n for n in question.topologies if question.use is None or question.use[n]]
    assert [len(chosen.cut.chains[name]) for name in used] == [1] * len(used)
    assert chosen.proven


@given(questions())
def test_with_memory_for_one_copy_nothing_is_copied(question):
    lean = replace(question, segment_mib=0.0, shares_weights=False)
    atoms = {atom: size or 1.0 for atom, size in question.atoms_mib.items()}
    lean = replace(lean, atoms_mib=atoms)
    without = lean.answer(None)
    assert lean.answer(without.memory_mib).cut == without.cut


@given(questions(large=True), factors, factors)
def test_more_memory_is_never_slower(question, factor, other):
    less, more = sorted(map(question.budget, (factor, other)))
    slower = answer(question, less)
    assert question.answer(more).gain_ms >= slower.gain_ms - 1e-6


@given(questions())
def test_where_segments_share_their_weights_and_cost_nothing_each_topology_is_whole(question):
    free = replace(question, shares_weights=True, segment_mib=0.0, use=None)
    without = free.answer(None)
    chosen = free.answer(without.memory_mib)
    assert (chosen.borders, chosen.memory_mib) == (0, without.memory_mib)


@given(questions(large=True), factors)
def test_without_time_pairs_are_merged_and_the_gap_covers_what_is_missed(question, factor):
    budget = question.budget(factor)
    best = answer(question, budget)
    assume(best.without_copies_mib <= budget)  # to start from
    merged = question.answer(budget, time_limit_s=0.0)
    require_whole(question.family, merged.cut, question.topologies)
    assert merged.memory_mib <= budget + 1e-4
    assert merged.gain_ms <= best.gain_ms + 1e-6
    assert merged.gain_ms + merged.gap_ms >= best.gain_ms - 1e-6
    assert merged.proven == (merged.gap_ms == 0)


@given(family_subsets(), st.floats(1, 3))
def test_merging_pairs_keeps_to_the_budget_in_any_family(both, factor):
    family, topologies = both
    names = [topology.name for topology in topologies]
    atoms_mib = {atom: 1.0 for name in names for atom in family.atoms(name)}
    chosen = choose_cut(
        family,
        names,
        atoms_mib=atoms_mib,
        border_ms=BORDER_MS,
        memory_mib=factor * len(atoms_mib),
        time_limit_s=0.0,
    )
    require_whole(family, chosen.cut, names)
    assert chosen.without_copies_mib == len(atoms_mib)
    assert chosen.memory_mib <= factor * len(atoms_mib) + 1e-4
    assert chosen.borders <= chosen.borders_without_copies


def test_borders_that_cost_nothing_are_not_worth_a_copy(toy_family):
    names = [topology.name for topology in toy_family.topologies]
    chosen = choose_cut(
        toy_family, names, atoms_mib=ones(toy_family), border_ms=0.0, memory_mib=1000.0
    )
    assert chosen.memory_mib == chosen.without_copies_mib
    assert chosen.gain_ms == 0


def ones(family: Family) -> dict[str, float]:
    """A MiB for each atom."""
    return {atom: 1.0 for topology in family.topologies for atom in family.atoms(topology)}


@pytest.mark.parametrize(("favourite", "other"), [("a:0:3", "b:0:3"), ("b:0:3", "a:0:3")])
def test_the_topology_that_is_used_more_is_made_whole(toy_family, favourite, other):
    chosen = choose_cut(
        toy_family,
        ["a:0:3", "a:0:1+b:0:3", "b:0:3"],
        atoms_mib=ones(toy_family),
        border_ms=1.0,
        memory_mib=15.0,
        use={favourite: 100.0, other: 1.0},
    )
    assert len(chosen.cut.chains[favourite]) == 1
    assert len(chosen.cut.chains[other]) == 2


def test_too_little_memory_is_refused_naming_what_would_fit(toy_family):
    names = ["a:0:3", "a:0:1+b:0:3", "b:0:3"]
    message = (
        r"3 topologies, 7 MiB of memory: no division fits, without copies they take 11 MiB; the "
        r"most that fit with a:0:3, the first, are 1, in 5 MiB: a:0:3; deploy these, or allow"
    )
    with pytest.raises(InfeasibleError, match=message):
        choose_cut(toy_family, names, atoms_mib=ones(toy_family), border_ms=1.0, memory_mib=7.0)


def test_memory_for_not_even_the_first_topology_is_refused_naming_its_size(toy_family):
    with pytest.raises(InfeasibleError, match="a:0:3 alone takes 5 MiB, 1 MiB too much"):
        choose_cut(
            toy_family,
            ["a:0:3", "b:0:3"],
            atoms_mib=ones(toy_family),
            border_ms=1.0,
            memory_mib=4.0,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"border_ms": -1.0}, "border_ms must be a number not below zero, not -1"),
        ({"memory_mib": math.nan}, "memory_mib must be a number not below zero, not nan"),
        ({"segment_mib": -0.5}, "segment_mib must be"),
        (
            {"atoms_mib": dict.fromkeys(("a:stem", "a:0", "a:1", "a:2", "a:head"), math.inf)},
            "of a:",
        ),
        ({"atoms_mib": {}}, "atoms_mib lacks 5 atoms of these topologies: a:0"),
        ({"use": {"b:0:3": 1.0}}, "use has b:0:3, which is not among the 1 topologies"),
        ({"use": {"a:0:3": 0.0}}, "use of all topologies together must be above zero"),
        ({"topologies": []}, "no topologies were given"),
    ],
)
def test_a_number_that_is_none_is_refused_by_its_name(toy_family, change, message):
    plain = {
        "topologies": ["a:0:3"],
        "atoms_mib": ones(toy_family),
        "border_ms": 1.0,
        "memory_mib": 100.0,
    }
    with pytest.raises(ValueError, match=message):
        choose_cut(toy_family, **{**plain, **change})


# --- what fits -------------------------------------------------------------------------------

PARTS = "abcdefg"
budgets = st.integers(4, 28).map(lambda halves: halves / 2)


@st.composite
def resident_questions(draw: st.DrawFn) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Up to six topologies of some of seven parts, and the sizes of these."""
    chains = draw(
        st.lists(st.lists(st.sampled_from(PARTS), min_size=1, unique=True), min_size=1, max_size=6)
    )
    sizes = {name: draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])) for name in PARTS}
    return {f"t{index}": chain for index, chain in enumerate(chains)}, sizes


def union(
    chains: Mapping[str, list[str]], sizes: Mapping[str, float], names: Iterable[str]
) -> float:
    return sum(sizes[name] for name in {one for name in names for one in chains[name]})


@given(resident_questions(), budgets)
def test_the_largest_resident_set_is_the_largest_of_all_there_are(both, budget):
    chains, sizes = both
    others = [name for name in chains if name != "t0"]
    sets = [
        ("t0", *(name for name, there in zip(others, bits, strict=True) if there))
        for bits in product([False, True], repeat=len(others))
    ]
    fitting = [
        (-len(s), union(chains, sizes, s)) for s in sets if union(chains, sizes, s) <= budget
    ]
    if not fitting:
        with pytest.raises(InfeasibleError, match="t0 alone takes"):
            largest_resident(chains, sizes, memory_mib=budget, safety="t0")
        return
    found = largest_resident(chains, sizes, memory_mib=budget, safety="t0")
    assert (-len(found.topologies), found.memory_mib) == min(fitting)
    assert found.memory_mib == union(chains, sizes, found.topologies)
    assert found.topologies == tuple(name for name in chains if name in found.topologies)
    assert found.topologies[0] == "t0"
    assert (found.proven, found.gap) == (True, 0)


@given(resident_questions(), budgets, budgets)
def test_more_memory_keeps_no_fewer_topologies(both, budget, other):
    chains, sizes = both
    less, more = sorted((budget, other))
    assume(union(chains, sizes, ["t0"]) <= less)
    few, many = (
        largest_resident(chains, sizes, memory_mib=m, safety="t0").topologies for m in (less, more)
    )
    assert len(few) <= len(many)


@given(resident_questions(), budgets)
def test_without_time_what_adds_least_is_kept_and_the_gap_covers_the_rest(both, budget):
    chains, sizes = both
    assume(union(chains, sizes, ["t0"]) <= budget)
    best = largest_resident(chains, sizes, memory_mib=budget, safety="t0")
    quick = largest_resident(chains, sizes, memory_mib=budget, safety="t0", time_limit_s=0.0)
    assert "t0" in quick.topologies
    assert union(chains, sizes, quick.topologies) <= budget
    assert len(quick.topologies) <= len(best.topologies) <= len(quick.topologies) + quick.gap
    assert quick.proven == (quick.gap == 0)


def test_what_shares_segments_is_kept_together():
    chains = {
        "fast": ["a"],
        "own": ["b"],
        "one": ["c", "d"],
        "two": ["c", "e"],
        "three": ["c", "f"],
    }
    sizes = {"a": 1.0, "b": 5.0, "c": 6.0, "d": 0.5, "e": 0.5, "f": 0.5}
    found = largest_resident(chains, sizes, memory_mib=8.5, safety="fast")
    assert found.topologies == ("fast", "one", "two", "three")


@pytest.mark.parametrize(
    ("sizes", "safety", "message"),
    [
        ({"a": 1.0}, "t9", "safety t9 is not among the 1 topologies"),
        ({}, "t0", "sizes_mib lacks 1 parts of these topologies: a"),
        ({"a": math.nan}, "t0", "sizes_mib of a must be a number not below zero, not nan"),
    ],
)
def test_what_cannot_be_judged_is_refused(sizes, safety, message):
    with pytest.raises(ValueError, match=message):
        largest_resident({"t0": ["a"]}, sizes, memory_mib=1.0, safety=safety)


# --- what a border costs ---------------------------------------------------------------------

UNEVEN = [
    *("ti:0:12", "s:0:12", "b:0:12", "s:0:6+b:6:12"),
    *(f"ti:0:{block}+s:{block}:12" for block in (1, 4, 11)),
]
"""The one exit from s cuts one of the ways into it once more: borders do not follow from blocks."""


def composed(family: Family, names: Iterable[str]) -> Profile:
    """A profile of topologies, all of which the sum was fitted to, with 0.25 ms for a border."""
    names = tuple(names)
    cut = cut_topologies(family, names)
    fitted = composition(
        Certificate(
            held_out=19,
            median_error=0.01,
            p95_error=0.02,
            factor=1.1,
            spread=0.1,
            confidence=0.95,
            costs={"call": 0.1, "border": 0.25},
        )
    )
    atoms = {atom for name in names for atom in family.atoms(name)}
    return msgspec.structs.replace(
        profile([cost(name) for name in names], family=family.name),
        segments=tuple(cut.atoms),
        composition=msgspec.structs.replace(
            fitted, designed=names, classes={atom: kind(atom) for atom in atoms}
        ),
    )


def kind(atom: str) -> str:
    """Blocks of an anchor are alike, and so are the stitching layers between two."""
    if "+" in atom:
        return "+".join(side.partition(":")[0] for side in atom.split("+"))
    return f"{atom.partition(':')[0]}:0" if atom[-1].isdigit() else atom


def test_a_composed_profile_knows_what_a_border_costs():
    family = load_family("deit-ti-s-b")
    assert border_ms(composed(family, UNEVEN), family) == 0.25


def test_where_every_block_is_a_segment_no_border_is_told_apart():
    family = load_family("deit-ti-s-b")
    everything = composed(family, (topology.name for topology in family.topologies))
    assert border_ms(everything, family) is None


def test_a_profile_that_composed_nothing_or_was_cut_otherwise_knows_no_border():
    family = load_family("deit-ti-s-b")
    known = composed(family, UNEVEN)
    assert border_ms(msgspec.structs.replace(known, composition=None), family) is None
    assert border_ms(msgspec.structs.replace(known, segments=("ti:stem",)), family) is None
