"""What a model costs: parameters, multiply-accumulates (MACs), activations, and on request its speed here.

    python -m metaformer.cost -m model=s12 mixer=identity,pooling,attention [cost.throughput=true] [cost.out=cost.csv]

Convolutions, matrix products and attention are counted with torch's own formulas, pooling and Fourier transforms with
those of metaformer/models/cost.py. Norms, activations and element-wise arithmetic are free by convention. An op with no
formula and not known to be free is named, never counted as zero.
"""

from collections.abc import Sequence
from pathlib import Path

from metaformer.cli import answer, words
from metaformer.studies.points import expand, unread
from metaformer.system.errors import ConfigError


def command(arguments: Sequence[str]) -> None:
    """Show what the cells cost that the command line describes."""
    points = expand(words(arguments).overrides, unread)
    out = points[0].config.cost.out
    if out is not None and Path(out).suffix not in (".csv", ".json"):
        raise ConfigError(f"cost.out={out}: expected a file that ends in .csv or .json")
    from metaformer.studies.cell_cost import rows_of, show, write

    cells = {point.run.cell_id: point for point in points}
    rows = [row for p in cells.values() for row in rows_of(p.cell, p.config, p.match.columns if p.match else {})]
    show(rows)
    if out is not None:
        write(rows, Path(out))
        print(f"written: {out}")


def main() -> None:
    answer(__doc__, command, ("mixer", "model", "data", "task", "recipe", "runtime", "budget", "cost"))


if __name__ == "__main__":
    main()
