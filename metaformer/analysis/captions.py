"""What stands under each picture of a page, and what it is called where it is not seen."""

from dataclasses import dataclass

from metaformer.analysis.colours import LEVELS
from metaformer.analysis.text_table import first_up, percent
from metaformer.analysis.verdict import NONE, Verdicts, decisive
from metaformer.config.metrics import in_words, metric_of, selecting
from metaformer.config.study_nodes import Study

PICTURED = 12  # cells whose predictions are shown


@dataclass(frozen=True)
class Caption:
    title: str  # instead of the picture
    text: str  # under it


PROBES = {  # the pictures of `python -m metaformer.probe`, in their order
    "mixing": Caption(
        "Mixing matrices of each mixer and stage",
        "Which tokens a mixer brings together. Of token i in what is put out (down) and token j in what is put in "
        "(across): the norm of the Jacobian's block, at real inputs, of the first seed's first block of each stage. "
        "For a mixer that keeps channels apart and is linear it is the size of its matrix's entries. Each map is drawn "
        "to its own largest weight.",
    ),
    "fields": Caption(
        "Receptive fields of each mixer and stage",
        "What of an image reaches a token: the norm of the Jacobian's block at real images, the effective receptive "
        "field of the token in the middle, and of the logits. Of the first seed, each map to its own largest weight.",
    ),
    "surgery": Caption(
        "Change of the accuracy without the mixers of a stage",
        "What is lost without the mixers of a stage: the change of the validation accuracy in points where they are "
        "replaced, with the 95% t interval over seeds, not adjusted.",
    ),
    "cka": Caption(
        "CKA of every two mixers, stage by stage",
        "Whether two mixers learn the same features (CKA). Off the diagonal two mixers at the same seed, on it one "
        "mixer at two seeds: what chance alone leaves in common.",
    ),
}


def _dashed(verdicts: Verdicts) -> str:
    names = ", ".join(cell.name for cell in verdicts.baselines)
    return f"Dashed: {names}, of another kind and not compared. " if names else ""


def captions(study: Study, verdicts: Verdicts) -> dict[str, Caption]:
    """Of each figure of a report."""
    metric, factor = study.analysis.metric, study.analysis.factor
    words, validated = in_words(metric), in_words(selecting(metric))
    again = " They start again after ten." if len({c.levels[factor] for c in verdicts.cells}) > len(LEVELS) else ""
    colours = f"One colour for each {factor} in all figures.{again}"
    judged = "pixels" if any(c.first.config.task.segments for c in verdicts.cells if c.runs) else "images"
    shown = f"each of the first {PICTURED} cells" if len(verdicts.cells) > PICTURED else "each cell"
    return {
        "differences": Caption(f"Differences to {study.reference} with their intervals", _differences(study, verdicts)),
        "accuracy": Caption(
            f"{words} of each cell",
            f"{first_up(words)} of each cell: its seeds as dots, their mean, and the 95% interval of the mean, not "
            f"adjusted. Dotted: the mean of {study.reference}. {_dashed(verdicts)}Differences are paired by seed: "
            f"they may be surer than these intervals look. {colours}{_near_chance(verdicts)}",
        ),
        "gaps": Caption(
            f"Differences to {study.reference} along the other factor",
            f"Each {factor} minus {study.reference} along the other factor, on a logarithmic axis, with the 95% "
            "intervals of the tables, not adjusted. How a gap moves is a contrast of its own, where the study has one.",
        ),
        "variance": Caption(
            f"Shares of the variance in {words}", "Where the variance comes from; lines are 95% intervals over seeds."
        ),
        "cost": Caption(
            f"{words} against parameters and MACs",
            f"{first_up(words)} against parameters and multiply-accumulates. The line joins the cells that no other "
            f"beats in both; grey marks, where there are any, are the paper's. {colours}",
        ),
        "curves": Caption(
            f"{validated} by epoch",
            f"{first_up(validated)} by epoch: the mean over seeds and its 95% t band, a panel for each setting of "
            f"the other factors. {colours}{' Then their lines are dashed.' if again else ''}",
        ),
        "rates": Caption(
            f"{validated} by learning rate",
            f"{first_up(validated)} by learning rate. A circle is the best one, open where it is at the edge of the "
            "grid: a better one may lie outside.",
        ),
        "predictions": Caption(
            "The first test images with their masks and predictions",
            f"The first test images in their order, their masks, and what the first seed of {shown} predicts. "
            "They are examples: no verdict rests on them.",
        ),
        "confusion": Caption(
            "Confusion matrix of each cell",
            f"Of the test {judged} of each class (row), the share that was taken for each class (column), all seeds "
            "together.",
        ),
    }


def _differences(study: Study, verdicts: Verdicts) -> str:
    drawn = [c for c in verdicts.confirmatory if c.crossed.seeds]
    levels = [decisive(c)[1] for c in drawn if c.verdict != NONE]
    unit = metric_of(study.analysis.metric).unit
    text = (
        f"Each cell minus {study.reference}, paired by seed. A line is the interval that its verdict rests on: for "
        "`different` that of the test of no difference, which leaves zero out; for `equivalent` that of the two "
        "one-sided tests, which stays within the margin; for `inconclusive` the wider of the two. "
    )
    if levels:
        low, high = min(levels), max(levels)
        here = " to ".join(dict.fromkeys(map(percent, (low, high))))
        correction = "" if study.analysis.correction == "none" else ", at the step of Holm's correction that decided"
        text += f"Their confidence is {here}{correction}; the 95% intervals of the tables are not adjusted. "
    if any(c.verdict == NONE for c in drawn):
        text += "Open and dotted, without a verdict: 95%. "
    return text + f"The band of ±{study.analysis.margin:g} {unit} counts as no difference.{_near_chance(verdicts)}"


def _near_chance(verdicts: Verdicts) -> str:
    there = any(cell.collapsed for cell in verdicts.cells)
    return " †: a run of it, or of its reference, ended at chance." if there else ""
