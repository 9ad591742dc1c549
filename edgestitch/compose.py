"""From the costs of a few topologies to those of all: a sum over what they consist of.

    cost = call + borders x border + sum over classes of atoms (how many x what one costs)

Atoms of one class compute the same thing, so the twelve blocks of an anchor are one unknown. No
term is below zero. Which topologies to measure is chosen before anything is: those from which the
sum is known best (D-optimal). Whether a device adds up at all is judged on others, drawn at random
and held out, and their errors give each prediction its bound (split conformal).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from .profile import Certificate

CALL = "call"
BORDER = "border"


@dataclass(frozen=True, eq=False)
class Terms:
    """How often each topology has each term of the sum."""

    topologies: tuple[str, ...]
    columns: tuple[str, ...]
    counts: np.ndarray
    """[topologies, columns]."""
    sizes: np.ndarray
    """[topologies], what each is expected to cost, in any unit: only ratios count."""

    @property
    def rank(self) -> int:
        """How many numbers the costs of all topologies depend on."""
        return int(np.linalg.matrix_rank(self.counts))

    def rank_of(self, topologies: Iterable[str]) -> int:
        """How many numbers the costs of these depend on."""
        return int(np.linalg.matrix_rank(self.rows(topologies)))

    def rows(self, topologies: Iterable[str]) -> np.ndarray:
        """[topologies given, columns]."""
        place = {name: index for index, name in enumerate(self.topologies)}
        return self.counts[[place[name] for name in topologies]]


def terms(
    atoms: Mapping[str, Sequence[str]],
    classes: Mapping[str, str],
    borders: Mapping[str, int],
    sizes: Mapping[str, float] | None = None,
) -> Terms:
    """The terms of topologies, from their atoms, the class of each atom and the number of borders.

    `sizes` are costs expected beforehand, up to a factor; without any all are taken to be equal.
    """
    counts = {
        name: Counter({CALL: 1, BORDER: borders[name], **Counter(classes[a] for a in parts)})
        for name, parts in atoms.items()
    }
    columns = (CALL, BORDER, *dict.fromkeys(classes[a] for parts in atoms.values() for a in parts))
    return Terms(
        topologies=tuple(atoms),
        columns=columns,
        counts=np.array(
            [[count[column] for column in columns] for count in counts.values()], float
        ),
        sizes=np.array([sizes[name] if sizes else 1.0 for name in atoms]),
    )


def d_optimal(terms: Terms, number: int) -> tuple[str, ...]:
    """The topologies, `number` of them, from which the terms are known best, in the family's order.

    They make the determinant of the information matrix as large as exchanges of one topology can
    (Fedorov 1972), from a greedy start. Errors are relative, so a topology that costs little tells
    more of what it consists of. The matrix is taken over the space that the topologies span, since
    terms that always come together cannot be told apart and need not be.

    Raises:
        ValueError: `number` is below the rank, or above the number of topologies.
    """
    rank, total = terms.rank, len(terms.topologies)
    if not rank <= number <= total:
        raise ValueError(f"a design needs {rank} to {total} topologies, not {number}")
    basis = _basis(terms, rank)
    chosen = _greedy(basis, number)
    _exchange(basis, chosen)
    return tuple(terms.topologies[index] for index in sorted(chosen))


def variance_factors(terms: Terms, design: Sequence[str]) -> np.ndarray:
    """[topologies]: variance of each prediction, relative, in units of that of one measurement."""
    basis = _basis(terms, terms.rank)
    place = {name: index for index, name in enumerate(terms.topologies)}
    measured = basis[[place[name] for name in design]]
    inverse = np.linalg.inv(measured.T @ measured)
    factors: np.ndarray = np.einsum("ij,jk,ik->i", basis, inverse, basis)
    return factors


def _basis(terms: Terms, rank: int) -> np.ndarray:
    """Orthonormal coordinates of the topologies, each over its size, in the space that they span."""
    left, _, _ = np.linalg.svd(terms.counts / terms.sizes[:, None], full_matrices=False)
    basis: np.ndarray = left[:, :rank]
    return basis


def _greedy(basis: np.ndarray, number: int) -> list[int]:
    """Each next one is that whose cost is known least."""
    information = 1e-6 * np.eye(basis.shape[1])
    chosen: list[int] = []
    for _ in range(number):
        gain = np.einsum("ij,jk,ik->i", basis, np.linalg.inv(information), basis)
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        information += np.outer(basis[chosen[-1]], basis[chosen[-1]])
    return chosen


def _exchange(basis: np.ndarray, chosen: list[int], rounds: int = 100) -> None:
    """Swaps a chosen row for another as long as that makes the determinant larger."""
    for _ in range(rounds):
        inverse = np.linalg.inv(basis[chosen].T @ basis[chosen])
        covariance = basis @ inverse @ basis.T
        variance = np.diag(covariance)
        # The determinant's factor when row i leaves and row j enters (Fedorov 1972).
        factors = (1 + variance[None, :]) * (1 - variance[chosen][:, None]) + covariance[
            chosen
        ] ** 2
        factors[:, chosen] = 0
        leaving, entering = np.unravel_index(factors.argmax(), factors.shape)
        if factors[leaving, entering] <= 1 + 1e-9:
            return
        chosen[int(leaving)] = int(entering)


def fit(terms: Terms, costs: Mapping[str, float]) -> dict[str, float]:
    """What each term costs: the relative errors on the costs given are least, no term below zero.

    Weighted non-negative least squares (Lawson and Hanson 1974); the weights are those of relative
    errors, since what takes ten times as long is measured ten times as coarsely.
    """
    solution = _non_negative(terms.rows(costs), np.array(list(costs.values()), float))
    return dict(zip(terms.columns, map(float, solution), strict=True))


def predict(terms: Terms, costs: Mapping[str, float], topologies: Iterable[str]) -> np.ndarray:
    """[topologies], the sums of what their terms cost."""
    predicted: np.ndarray = terms.rows(topologies) @ [costs[column] for column in terms.columns]
    return predicted


def _non_negative(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What each column costs, not below zero, with the least relative errors of the rows' sums."""
    from scipy.optimize import nnls  # half a second to import

    # Columns of equal size: the solver's tolerance is absolute.
    scale = np.maximum(rows.max(0), 1e-12)
    solution, _ = nnls(rows / scale / values[:, None], np.ones(len(values)))
    costs: np.ndarray = solution / scale
    return costs


def explained(
    terms: Terms,
    calls: Sequence[Mapping[str, float]],
    totals: Sequence[float] | np.ndarray,
    topologies: Sequence[str],
    noise: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The costs of topologies from totals over mixtures of calls, and the errors of these costs.

    Both [topologies]; an error is the half-width of the 95 % interval, infinite where the mixtures
    do not tell a topology's cost. `noise` is that of one total, relative; without it, it is what
    the sum leaves unexplained. Least squares with relative errors, over the space that the
    topologies span.
    """
    from scipy.stats import t  # a second to import

    mixtures = np.array(
        [
            np.sum([count * terms.rows([name])[0] for name, count in mixture.items()], axis=0)
            for mixture in calls
        ]
    )
    values = np.asarray(totals, float)
    costs = _non_negative(mixtures, values)
    rows = terms.rows(topologies)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    space = directions[: terms.rank_of(topologies)]  # of the terms' costs, what matters here
    scaled = mixtures @ space.T / values[:, None]
    if noise is None:
        freedom = max(len(values) - len(space), 1)
        variance = float(((mixtures @ costs / values - 1) ** 2).sum()) / freedom
        noise = float(t.ppf(0.975, freedom) * np.sqrt(variance))
    inverse = np.linalg.pinv(scaled)
    wanted = rows @ space.T
    errors = noise * np.linalg.norm(wanted @ inverse, axis=1)
    unknown = np.linalg.norm(wanted - wanted @ inverse @ scaled, axis=1)
    told = unknown <= 1e-6 * np.linalg.norm(wanted, axis=1)
    return rows @ costs, np.where(told, errors, np.inf)


def certify(
    terms: Terms,
    costs: Mapping[str, float],
    held_out: Mapping[str, float],
    confidence: float,
    earlier: Sequence[float] = (),
) -> Certificate:
    """How well terms' costs predict topologies that they were not fitted to, and bounds from that.

    `earlier` are ratios, true over predicted, of those held out before from sums that were not good
    enough. The bounds count them: to stop at the first ones that are predicted well, and to forget
    the others, would bound too little.

    With fewer held out than the confidence takes, the largest error is the bound and the
    confidence is what that gives.
    """
    ratios = np.array(list(held_out.values())) / predict(terms, costs, held_out)
    errors = np.abs(1 / ratios - 1)
    scores = np.concatenate((ratios, earlier))
    factor, level = conformal(scores, confidence)
    spread, _ = conformal(np.abs(scores - 1), confidence)
    return Certificate(
        held_out=len(held_out),
        median_error=float(np.median(errors)),
        p95_error=float(np.quantile(errors, 0.95, method="higher")),
        factor=factor,
        spread=spread,
        confidence=level,
        costs=dict(costs),
    )


def conformal(scores: np.ndarray, confidence: float) -> tuple[float, float]:
    """A bound on the score of the next one, and with which probability it holds.

    Of `n` scores it is the one of rank `ceil((n + 1) confidence)` (Lei et al. 2018, equation 7), and
    the largest where that is beyond them.
    """
    number = len(scores)
    rank = min(ceil(round((number + 1) * confidence, 9)), number)
    return float(np.sort(scores)[rank - 1]), min(confidence, number / (number + 1))


@dataclass
class Selection:
    """Which topologies are measured to fit the sum, and which are held out to judge it."""

    terms: Terms
    confidence: float
    """Of the bounds that follow from those held out."""
    seed: int = 0
    everything: bool = False
    """Whether all are measured from the beginning."""
    designed: list[str] = field(init=False)
    validated: list[str] = field(init=False)
    earlier: list[tuple[list[str], list[str]]] = field(init=False, default_factory=list)
    """The pairs of both before each extension."""

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"a confidence is between 0 and 1, not {self.confidence}")
        self._random = np.random.default_rng(self.seed)
        number = None if self.everything else self._design_size()
        if number is None:
            self.measure_all()
        else:
            self.designed = list(d_optimal(self.terms, number))
            self.validated = self._draw()

    @property
    def held_out(self) -> int:
        """How many must be held out: `n` give a confidence of `n / (n + 1)` at most."""
        return ceil(round(self.confidence / (1 - self.confidence), 9))

    @property
    def measured(self) -> list[str]:
        return [*self.designed, *self.validated]

    @property
    def complete(self) -> bool:
        """Whether all are measured and none is composed."""
        return len(self.measured) == len(self.terms.topologies)

    def _design_size(self) -> int | None:
        """Half as many again as the sum has numbers, or fewer to measure a quarter of all at most.

        `None` where so few would be left to compose that measuring them as well is the better use
        of the time.
        """
        rank, total = self.terms.rank, len(self.terms.topologies)
        if rank + self.held_out > 0.6 * total:
            return None
        return min(max(total // 4 - self.held_out, rank), ceil(1.5 * rank))

    def _draw(self) -> list[str]:
        known = set(self.designed)
        left = [name for name in self.terms.topologies if name not in known]
        chosen = self._random.choice(len(left), self.held_out, replace=False)
        return [left[index] for index in sorted(chosen)]

    def extend(self) -> None:
        """Fits to those held out as well, and holds out others; all, where too few are left."""
        if len(self.terms.topologies) - len(self.measured) <= 2 * self.held_out:
            self.measure_all()
        else:
            self.earlier.append((self.designed, self.validated))
            self.designed = self.measured
            self.validated = self._draw()

    def measure_all(self) -> None:
        self.designed, self.validated = list(self.terms.topologies), []

    def certify(self, costs: Mapping[str, float]) -> Certificate:
        """The sum fitted to the designed ones of measured costs, judged on those held out."""
        earlier: list[float] = []
        for designed, validated in self.earlier:
            predicted = predict(self.terms, self._fit(designed, costs), validated)
            earlier += [costs[n] / p for n, p in zip(validated, predicted, strict=True)]
        held_out = {name: costs[name] for name in self.validated}
        fitted = self._fit(self.designed, costs)
        return certify(self.terms, fitted, held_out, self.confidence, earlier)

    def _fit(self, designed: Iterable[str], costs: Mapping[str, float]) -> dict[str, float]:
        return fit(self.terms, {name: costs[name] for name in designed})
