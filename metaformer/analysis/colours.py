"""One colour for one meaning, in every picture of a report: on paper, and its partner on a dark screen.

Verdicts, levels of the factor (mixers), and shares of the variance never have a colour in common.
"""

import re
from collections.abc import Sequence

COLOURS = {  # name: on white, on a dark screen
    "ink": ("#1c2733", "#e3e8ed"),
    "paper": ("#ffffff", "#14191f"),
    "quiet": ("#5b6875", "#a3afbb"),
    "line": ("#dfe4ea", "#323b45"),
    "equivalent": ("#00805d", "#2fc398"),
    "different": ("#c24e00", "#ff8a3d"),
    "inconclusive": ("#68727b", "#98a3ad"),
    "published": ("#aaaaaa", "#7d858c"),  # what a paper reports
    "share": ("#1f7a80", "#4fb5bc"),
    "fewer": ("#9ccbd0", "#2f666b"),  # the shares of fewer cells
    "level0": ("#0072b2", "#4da3e0"),
    "level1": ("#c98500", "#f0b429"),
    "level2": ("#c4639a", "#e39cc3"),
    "level3": ("#7f3c8d", "#bb8cc8"),
    "level4": ("#8c5a2b", "#cb9d70"),
    "level5": ("#7d7a00", "#c5c046"),
    "level6": ("#3c9fd0", "#86cdf0"),
    "level7": ("#2b2f77", "#9499ea"),
    "level8": ("#b0125b", "#f06aa0"),
    "level9": ("#44606b", "#9db7c1"),
}
INK, PAPER, QUIET, LINE = (COLOURS[name][0] for name in ("ink", "paper", "quiet", "line"))
LEVELS = [light for name, (light, _) in COLOURS.items() if name.startswith("level")]


def level_colours(levels: Sequence[str]) -> dict[str, str]:
    """The colour of each level of the factor, the same in all pictures of a study; they start again after ten."""
    return {level: LEVELS[i % len(LEVELS)] for i, level in enumerate(levels)}


def level_lines(levels: Sequence[str]) -> dict[str, str]:
    """The style of the line of each level, another one each time that the colours start again."""
    return {level: ("-", "--", ":", "-.")[i // len(LEVELS) % 4] for i, level in enumerate(levels)}


def on_page(svg: str, *, recolour: bool = True) -> str:
    """A picture of matplotlib for a page: without a background, in the page's type and, unless told, its colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r" <(metadata|defs)>\s*<(?:rdf|style).*?</\1>\n?", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<g|<image[^>]*?) id="[^"]*"', r"\1", svg)  # pictures of a page share them
    svg = re.sub(r" font-family: [^;]*;", "", svg).replace(f"fill: {PAPER}", "fill: none", 1)
    for name, (light, _) in COLOURS.items() if recolour else ():
        svg = svg.replace(light, f"var(--{name})")
    return svg
