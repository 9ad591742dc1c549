"""What a calibration reached, as a table: top-1 at each stage, and above the line between anchors.

Reads `<family>.calibration.json` and `<family>.complexity.json` as `edgestitch calibrate` and
`edgestitch show --count` write them; measures nothing itself.
"""

import argparse
from pathlib import Path

from edgestitch import Family, load_family
from edgestitch.artifact import load
from edgestitch.calibrate import Calibration
from edgestitch.complexity import Complexity, above_line
from edgestitch.shipped import shipped


def table(family: Family, calibration: Calibration, complexity: Complexity) -> str:
    top1 = {s.topology: s.finetuned for s in calibration.steps if s.finetuned is not None}
    above = above_line(family, complexity, top1)
    lines = [
        "| topology | MMACs | alone | least squares only | fine-tuned | above the line |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for step in calibration.steps:
        cells = [
            f"`{step.topology}`",
            f"{1e3 * complexity.gmacs(family, step.topology):.2f}",
            "" if step.alone is None else f"{step.alone:.2f}",
            "" if step.alone is not None else f"{step.initialized:.2f}",
            "" if step.finetuned is None else f"{step.finetuned:.2f}",
            "" if step.topology not in above else f"{above[step.topology]:+.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    mean = sum(above.values()) / len(above)
    losses = [s.alone - s.finetuned for s in calibration.steps if s.alone and s.finetuned]
    return "\n".join(
        [
            *lines,
            "",
            f"Mean above the line over {len(above)} stitched topologies: {mean:+.2f} points. Largest "
            f"loss of an anchor against itself alone: {max(losses):+.2f} points.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="?", default="fashion-vit")
    parser.add_argument("--folder", type=Path, default=shipped("calibrate"))
    options = parser.parse_args()
    print(
        table(
            load_family(options.family),
            load(Calibration, options.folder / f"{options.family}.calibration.json"),
            load(Complexity, options.folder / f"{options.family}.complexity.json"),
        )
    )


if __name__ == "__main__":
    main()
