"""What a report is made of: any mix of artifacts, that must be about the same network."""

from dataclasses import dataclass
from typing import Any

from edgestitch.accuracy import Accuracy
from edgestitch.artifact import Value, digest
from edgestitch.complexity import Complexity
from edgestitch.errors import ArtifactError
from edgestitch.family import Family
from edgestitch.peers import Peers
from edgestitch.profile import Profile, require_comparable, require_equal, require_same_network
from edgestitch.runlog import RunLog
from edgestitch.schedule import Budget, Plan
from edgestitch.switches import SwitchMatrix
from edgestitch.zoo import Zoo


class RunRow(Value, frozen=True, kw_only=True):
    """What a runtime session measured while one budget held."""

    budget: Budget
    topologies: dict[str, int]
    """Frames of each that ran, most first."""
    frames: int
    median_ms: float
    p99_ms: float
    top1: float
    top1_low: float
    top1_high: float
    """Top-1 in percent over the frames, with its 95 % interval."""
    hit_rate: float | None
    """Fraction of the frames that ended within the deadline; `None`: there was none."""
    switch_us: float | None
    """`None`: nothing was switched, or it was not measured."""
    first_ms: float | None
    """The first inference after the switch."""

    @property
    def topology(self) -> str:
        """The one that ran most."""
        return next(iter(self.topologies))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Artifacts of one network; each may be missing, and the page then lacks what needs it."""

    family: Family | None = None
    accuracy: Accuracy | None = None
    profile: Profile | None = None
    plan: Plan | None = None
    complexity: Complexity | None = None
    peers: Peers | None = None
    zoo: Zoo | None = None
    switches: SwitchMatrix | None = None
    logs: tuple[RunLog, ...] = ()
    runs: tuple[RunRow, ...] = ()

    def check(self) -> None:
        """Raises what `render` says, unless these can stand on one page."""
        self._require_content()
        if self.family is not None:
            for what, artifact in self._about_the_family():
                require_equal(f"family and {what}", family=(self.family.name, artifact.family))
            if self.complexity is not None:
                self.complexity.check(self.family)
        elif self.accuracy or self.profile or self.plan or self.complexity:
            raise ValueError("accuracies, profiles and plans are of a family: pass it as well")
        self._require_same_network()
        self._require_same_origin()
        self._require_same_device()

    def _about_the_family(self) -> list[tuple[str, Any]]:
        named: list[tuple[str, Any]] = [
            ("accuracy", self.accuracy),
            ("profile", self.profile),
            ("plan", self.plan),
            ("switches", self.switches),
            *(("run log", log) for log in self.logs),
        ]
        return [(what, artifact) for what, artifact in named if artifact is not None]

    def _require_content(self) -> None:
        if self.profile is not None and not self.profile.costs:
            raise ArtifactError(
                f"the profile of {self.profile.family} on {self.profile.conditions.label} has no "
                "topology in it; profile again"
            )
        costs = (self.profile, self.plan, self.complexity, self.zoo, self.switches)
        if not (any(costs) or self.logs or self.runs):
            raise ValueError(
                "a report sets accuracy against a cost, and was given none: give a profile (latency "
                "on a device), a complexity (multiply-adds), or both; or a zoo, switches, the log of "
                "a run"
            )

    def _require_same_network(self) -> None:
        about = self._about_the_family()
        if self.accuracy is not None:
            for what, artifact in about[1:]:
                self.accuracy.check(what, artifact.family, artifact.network)
        known = [(what, artifact) for what, artifact in about if artifact.network is not None]
        for what, artifact in known[1:]:
            first, other = known[0]
            require_same_network(f"{what} and {first}", artifact.network, other.network)
            require_equal(f"{what} and {first}", family=(artifact.family, other.family))

    def _require_same_origin(self) -> None:
        """A plan is made from one accuracy and one profile, by their digests."""
        if self.plan is None:
            return
        if self.accuracy is not None:
            require_equal("plan and accuracy", accuracy=(self.plan.accuracy, digest(self.accuracy)))
        if self.profile is not None:
            require_equal("plan and profile", profile=(self.plan.profile, digest(self.profile)))

    def _require_same_device(self) -> None:
        """Networks of a zoo stand beside topologies of as many classes, measured as they were."""
        if self.zoo is None:
            return
        if self.family is not None:
            numbers = (self.family.num_classes, self.zoo.num_classes)
            require_equal("family and zoo", **{"number of classes": numbers})
        if self.profile is not None:
            require_comparable("profile and zoo", self.profile.conditions, self.zoo.conditions)
