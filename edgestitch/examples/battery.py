"""A battery that empties: the budget follows what is left of it.

    python -m edgestitch.examples.battery --deployment deployment

Where the profile has energies (`edgestitch profile` with a meter), each image gets fewer millijoules
the less is left (`budget_w` would bound the power in the same way). Where it has none, no energy is
guessed: a shorter deadline asks for a smaller network, and by how much that spends less is not known.
"""

from pathlib import Path

import click
import numpy as np

from edgestitch import EdgestitchError, Runtime
from edgestitch.data import preprocess

STEPS = 5
"""Budgets from a full battery to an empty one."""


def spread_mj(runtime: Runtime) -> list[float]:
    """Budgets from that of the hungriest resident topology down to that of the most frugal."""
    energies = [c.energy_mj for c in runtime.deployment.plan.resident if c.energy_mj is not None]
    return [float(value) for value in np.linspace(max(energies), min(energies), STEPS)]


def spread_ms(runtime: Runtime) -> list[float]:
    """Deadlines from that of the slowest resident topology down to that of the fastest."""
    bounds = [candidate.latency_ms for candidate in runtime.deployment.plan.resident]
    return [float(value) for value in np.linspace(max(bounds), min(bounds), STEPS)]


def drain(runtime: Runtime, image: np.ndarray, images: int) -> None:
    """Runs so many images at each step, and says what ran."""
    reason = runtime.deployment.profile.energy_reason
    if reason is None:
        unit, budgets = "mJ", spread_mj(runtime)
    else:
        click.echo(f"no energy was measured: {reason}")
        click.echo("profile with a meter for budgets in mJ or W; until then deadlines are lowered")
        unit, budgets = "ms", spread_ms(runtime)
    for step, budget in enumerate(budgets):
        if unit == "mJ":
            runtime.budget_mj = budget
        else:
            runtime.budget_ms = budget
        results = [runtime.infer(image) for _ in range(images)]
        left = 100 * (STEPS - step) // STEPS
        click.echo(
            f"battery {left:3d} %: at most {budget:.3g} {unit} an image, runs {results[-1].topology}"
        )


@click.command()
@click.option("--deployment", type=click.Path(path_type=Path), help="The shipped one if not given.")
@click.option("--frames", type=click.IntRange(min=1), default=30, show_default=True)
def main(deployment: Path | None, frames: int) -> None:
    """Lowers the budget as a battery empties, FRAMES images at each step."""
    try:
        with Runtime(deployment) as runtime:
            family = runtime.deployment.manifest.family
            noise = np.random.default_rng(0).integers(0, 256, runtime.input_shape, dtype=np.uint8)
            drain(runtime, preprocess(noise, mean=family.mean, std=family.std), frames)
    except EdgestitchError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
