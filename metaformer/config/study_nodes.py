"""The nodes of the configuration that make a study: how it is judged, and cells of equal cost. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from metaformer.config.fields import choice, number
from metaformer.config.metrics import metrics_of

BUDGET_KEYS = {"width": "dims", "mlp_ratio": "mlp_ratio", "depth": "depths"}  # of the model, by budget.by


@dataclass
class Analysis:
    """How a study will be judged, fixed before its first run; a report says when, and whether it changed."""

    metric: str = choice(*metrics_of("test"), *metrics_of("val"))  # by which cells are compared
    factor: str = "mixer"  # what is compared, everything else equal: the last word of a key of the grid
    margin: float = number(1.0, "a number above 0", above=0, below=100)  # smaller differences count as none
    alpha: float = number(0.05, "a small probability, like 0.05", above=0, below=0.5)  # of a wrong verdict among all
    correction: str = choice("holm", "holm_study", "none")  # over the comparisons of a setting, or of the study
    variance: str = choice("auto", "moderated", "own")  # moderated: the cells' variances together; auto: to 5 seeds
    failed: str = choice("refuse", "chance")  # a run that failed: no verdict, or the accuracy of a guess
    looks: list[int] | None = None  # numbers of seeds at which verdicts are taken, like [5, 8, 12]; None: at all
    spending: str = choice("obrien_fleming", "pocock")  # of alpha over the looks
    claim_without: list[str] = field(default_factory=lambda: ["identity"])  # levels that need not equal the others
    baselines: list[str] = field(default_factory=list)  # levels of another kind: shown beside the others, not compared
    contrasts: dict[str, Any] = field(default_factory=dict)  # {name: {cell: weight}}: tested like comparisons
    # Share by which parameters and MACs may differ in a comparison; None: same shape
    tolerance: float | None = number(0.1, "a share like 0.1, or null", at_least=0)
    tuned: list[str] = field(default_factory=list)  # keys of the optimisation that an equal search chose for each cell


@dataclass
class Study:
    name: str | None = None  # of its folder; None: no study
    question: str = ""  # in a sentence, for the report
    reference: str = "pooling"  # the level of the factor that all others are compared with
    analysis: Analysis = field(default_factory=Analysis)


@dataclass
class Budget:
    """Cells of equal cost: each is changed until it costs what the target does. The result is an ordinary cell."""

    match: str = choice("none", "params", "macs", "time")  # time: of a training step on this machine
    target: Any = None  # a mixer, whose cell with all else equal sets the cost, or a number; None: study.reference
    by: str = choice("width", "mlp_ratio", "depth")  # what is changed
    tolerance: float = number(0.01, "a share like 0.01", above=0, below=1)  # by which the cost may miss
