"""A table of text cells, which goes to a terminal, to CSV, to Markdown, to LaTeX and to a page."""

import csv
import math
import re
from dataclasses import dataclass
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from metaformer.analysis.stats import Estimate

IN_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
IN_LATEX |= {"<": r"$<$", ">": r"$>$"} | {character: f"\\{character}" for character in "&%$#_{}"}


def first_up(words: str) -> str:
    """Words as the beginning of a sentence; abbreviations stay."""
    return words[:1].upper() + words[1:]


@dataclass(frozen=True)
class Table:
    """Text cells under a header; the columns in `words` hold sentences and are set to the left."""

    header: list[str]
    lines: list[list[str]]
    caption: str = ""
    words: tuple[str, ...] = ()

    def markdown(self) -> str:
        rules = ["---" if i == 0 or name in self.words else "---:" for i, name in enumerate(self.header)]
        lines = [[text.replace("|", "\\|") for text in line] for line in [self.header, rules, *self.lines]]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def csv(self) -> str:
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.lines])
        return text.getvalue()

    def latex(self) -> str:
        """A table environment with the rules of booktabs."""
        columns = "".join("l" if i == 0 or name in self.words else "r" for i, name in enumerate(self.header))
        rows = [" & ".join(map(_in_latex, line)) + r" \\" for line in [self.header, *self.lines]]
        rows = [f"{{}}{row}" if row.startswith("[") else row for row in rows]  # no argument of `\\`
        body = "\n".join([r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"])
        caption = f"\\caption{{{_in_latex(self.caption)}}}\n" if self.caption else ""
        start = f"% \\usepackage{{booktabs}}\n\\begin{{table}}\n\\centering\n{caption}\\begin{{tabular}}{{{columns}}}\n"
        return f"{start}{body}\n\\end{{tabular}}\n\\end{{table}}\n"

    def rich(self) -> RichTable:
        table = RichTable(box=SIMPLE_HEAD, caption=escape(self.caption), caption_justify="left")
        for i, name in enumerate(self.header):
            left = i == 0 or name in self.words
            table.add_column(escape(name), justify="left" if left else "right", overflow="fold")
        for line in self.lines:
            table.add_row(*map(escape, line))
        return table


def _in_latex(text: str) -> str:
    """Text as LaTeX prints it; numbers get a minus that is no hyphen."""
    escaped = "".join(IN_LATEX.get(character, character) for character in text)
    code = re.sub(r"`([^`]+)`", r"\\texttt{\1}", escaped)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", code)


def plus_minus(estimate: Estimate, sign: str = "", digits: int = 2) -> str:
    """`76.80 ± 0.41`: a mean and half its interval, which a single seed has not."""
    mean = f"{estimate.mean:{sign}.{digits}f}"
    return mean if math.isnan(estimate.low) else f"{mean} ± {estimate.high - estimate.mean:.{digits}f}"


def percent(confidence: float) -> str:
    """`98.3%`, and `99.96%` where one decimal would round to all."""
    digits = next((digits for digits in range(1, 6) if round(confidence, digits + 2) < 1), 6)
    return f"{100 * confidence:.{digits}f}%"


def p_value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
