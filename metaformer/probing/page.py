"""The page of a comparison of trained mixers, with its tables and figures as files beside it."""

from pathlib import Path

from metaformer.analysis import figures
from metaformer.analysis.captions import PROBES
from metaformer.analysis.colours import on_page
from metaformer.analysis.page import template
from metaformer.probing import pictures
from metaformer.probing.tables import Cells, cka_table, instead_of, sentences, similarities, stage_table, surgery_table
from metaformer.system.files import now, write


def write_page(cells: Cells, folder: Path, setting: str, title: str, command: str) -> Path:
    """Tables, figures and one self-contained page of a comparison; its path."""
    prefix = f"{setting.replace(' ', '-').replace('/', '_')}-" if setting else ""
    found = similarities(cells)
    tables = {"stages": stage_table(cells), "surgery": surgery_table(cells), "cka": cka_table(found)}
    for name, table in tables.items():
        write(folder / f"{prefix}{name}.csv", table.csv())
        write(folder / f"{prefix}{name}.md", table.markdown())
    drawn = {
        "mixing": pictures.mixing(cells),
        "fields": pictures.fields(cells),
        "surgery": pictures.surgery(cells, instead_of(cells)),
        "cka": pictures.cka(found, list(cells)),
    }
    svgs = {
        name: on_page(figures.save(figure, folder, f"{prefix}{name}"), recolour=False) for name, figure in drawn.items()
    }
    path = folder / f"{prefix}probes.html"
    write(
        path,
        template("probe.html").render(
            title=title,
            setting=setting,
            counts=f"{len(cells)} cells, {figures.span(len(seeds) for seeds in cells.values())} seeds each",
            written=now()[:10],
            headline=sentences(cells, found),
            figures=svgs,
            captions=PROBES,
            tables=tables,
            command=command,
        ),
    )
    return path
