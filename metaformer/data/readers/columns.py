"""Images in a table (.csv or .tsv with paths, .parquet with paths or encoded images), and Hugging Face's data sets."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaformer.config.schema import Data
from metaformer.data.digests import Items
from metaformer.data.listing import WORDS, Findings, Found, once, root_of, split_of
from metaformer.data.readers.folder import Files
from metaformer.system.errors import ConfigError, in_a_line, install, nearest

EXPECTED = "a table that ends in .csv, .tsv or .parquet"
USUAL = {  # names of columns that are tried where the configuration gives none
    "image": ("image", "img", "path", "file", "filename", "file_name", "filepath", "image_path"),
    "label": ("label", "class", "target", "fine_label", "category", "labels"),
    "split": ("split", "subset", "fold", "set"),
}


@dataclass
class Cells:
    """Encoded images in a column, which is read by row."""

    names: list[str]
    column: Any
    folder: Path = Path()  # which paths in it are relative to

    def read(self, place: int) -> bytes:
        cell = self.column[place]
        cell = cell.as_py() if hasattr(cell, "as_py") else cell
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if content is None and isinstance(cell, dict) and cell.get("path"):
            return Files([str(self.folder / cell["path"])]).read(0)
        if not isinstance(content, bytes):
            raise ConfigError(f"{self.names[place]}: holds {type(content).__name__}; expected an encoded image")
        return content

    def stamps(self) -> None:
        return None


def find(data: Data) -> Findings:
    """The rows of the table `data.root`; paths in it are relative to its folder."""
    path = root_of(data, EXPECTED)
    if path.suffix.lower() in (".csv", ".tsv"):
        columns = _text(path)
    elif path.suffix.lower() == ".parquet":
        columns = _parquet(path)
    else:
        raise ConfigError(f"data.root={data.root}: expected {EXPECTED}")
    image, split = _column(columns, "image", data, str(path)), _column(columns, "split", data, str(path), needed=False)
    second = _column(columns, "label" if data.mask_column is None else "mask", data, str(path))
    words = [str(word) for word in columns[split]] if split else ["train"] * len(columns[image])
    notes = []
    if data.split_column is None and split and not any(map(split_of, words)):  # a fold, or what else it may be
        notes, words = [f"its column {split} names no split, and is not read"], ["train"] * len(words)
    rows: dict[str, list[int]] = {}
    for i, word in enumerate(words):
        if (name := split_of(word)) is None:
            raise ConfigError(f"{path}: row {i + 1}: {split}='{word}' is no split; expected train, val or test")
        rows.setdefault(name, []).append(i)
    if data.mask_column is not None:
        masks = {name: _items(columns[second], own, path, second) for name, own in rows.items()}
        images = {name: _items(columns[image], own, path, image) for name, own in rows.items()}
        return Findings({name: Found(images[name], [], masks[name]) for name in rows}, notes=notes)
    labels = [_label(value, f"{path}: row {i + 1}") for i, value in enumerate(columns[second])]
    found = {
        name: Found(_items(columns[image], own, path, image), [labels[i] for i in own]) for name, own in rows.items()
    }
    return Findings(found, notes=notes)


def _items(column: Any, rows: Sequence[int], path: Path, name: str) -> Items:
    if (blank := next((i for i in rows if _blank(column[i])), None)) is not None:
        raise ConfigError(f"{path}: row {blank + 1}: has nothing in the column {name}")
    first = column[rows[0]]
    first = first.as_py() if hasattr(first, "as_py") else first
    if not isinstance(first, str):
        names = [f"{path}: row {i + 1}" for i in rows]
        cells = column.take(list(rows)) if hasattr(column, "take") else [column[i] for i in rows]
        return Cells(names, cells, path.parent)
    files = []
    for i in rows:
        file = path.parent / str(column[i]).removeprefix("file://")
        if not file.is_file():
            raise ConfigError(f"{path}: row {i + 1}: {column[i]}: no such file beside the table")
        files.append(str(file))
    return Files(files)


def _blank(cell: Any) -> bool:
    """Whether there is nothing in a cell, of Python's or of pyarrow's."""
    return not getattr(cell, "is_valid", cell is not None) or (isinstance(cell, str) and not cell.strip())


def _label(value: Any, where: str) -> str:
    value = value.as_py() if hasattr(value, "as_py") else value
    if isinstance(value, list | tuple | dict):
        raise ConfigError(f"{where}: has {len(value)} labels; expected one class for each image")
    if value is None or str(value).strip().lower() in ("", "nan"):
        raise ConfigError(f"{where}: has no label")
    return str(value).strip()


def _column(columns: dict[str, Any], kind: str, data: Data, where: str, needed: bool = True) -> str:
    """The name of a column: that of the configuration, or the first that is usual."""
    chosen = getattr(data, f"{kind}_column")
    if chosen is not None:
        if chosen not in columns:
            hint = nearest(chosen, columns)
            raise ConfigError(f"data.{kind}_column={chosen}: {where} has {', '.join(columns)}{hint}")
        return str(chosen)
    lower = {name.lower(): name for name in columns}
    found = next((lower[name] for name in USUAL[kind] if name in lower), "")
    if needed and not found:
        masks = ", or data.mask_column for task=segmentation" if kind == "label" else ""
        told = f"{where} has {', '.join(columns)}; set the one that holds the {kind}{masks}"
        raise ConfigError(f"data.{kind}_column: {told}")
    return found


def _text(path: Path) -> dict[str, Any]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    if len(rows) < 2:
        raise ConfigError(f"{path}: has no rows; expected a line of names of columns, and a row for each image")
    header = [name.strip() for name in rows[0]]
    if twice := [name for name, n in Counter(header).items() if n > 1]:
        raise ConfigError(f"{path}: has {twice[0]} twice in its first line; expected each name of a column once")
    for i, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise ConfigError(f"{path}: line {i} has {len(row)} cells, the first {len(header)}")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(header)}


def _parquet(path: Path) -> dict[str, Any]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path}: parquet needs {install('hub')}") from error
    try:
        table = parquet.read_table(path)
    except Exception as error:  # pyarrow's own, which are many
        raise ConfigError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return {name: _plain(table.column(name).combine_chunks()) for name in table.column_names}


def _plain(column: Any) -> Any:
    """Text and numbers as Python's; images stay where they are."""
    import pyarrow as pa

    heavy = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type) or pa.types.is_struct(column.type)
    return column if heavy else column.to_pylist()


def find_on_hub(data: Data) -> Findings:
    """The splits of `data.dataset`, a folder or a name on the hub, through the library `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data=hub: needs {install('hub')}") from error
    name = str(data.dataset)
    try:
        local = (Path(name).expanduser() / "dataset_dict.json").exists()
        found = datasets.load_from_disk(name) if local else datasets.load_dataset(name)
    except Exception as error:  # whatever the hub and the network raise
        raise ConfigError(f"data.dataset={name}: {in_a_line(error)}") from error
    words = [(split, word) for word in found if (split := split_of(word)) is not None]
    once(words, f"data.dataset={name}")
    notes = [f"its split {word} is not read{nearest(word, WORDS)}" for word in found if split_of(word) is None]
    splits = {}
    for split, word in words:
        part = found[word]
        kinds = ("image", "label" if data.mask_column is None else "mask")
        image, label = (_column(part.features, kind, data, name) for kind in kinds)
        for column in (image, label):
            if isinstance(part.features[column], datasets.Image):
                part = part.cast_column(column, datasets.Image(decode=False))
        places = [f"{name}: {word} row {i + 1}" for i in range(len(part))]
        if data.mask_column is not None:
            masks = Cells([f"{place}: {label}" for place in places], part[label])
            splits[split] = Found(Cells(places, part[image]), [], masks)
            continue
        kind = part.features[label]
        values = part[label]
        labels = [kind.int2str(v) if v is not None and hasattr(kind, "int2str") and v >= 0 else v for v in values]
        if all(v == -1 for v in labels):
            notes.append(f"its split {word} has no labels and is not read")  # as the test images of a challenge
            continue
        if hasattr(kind, "int2str") and -1 in values:
            raise ConfigError(f"{places[list(values).index(-1)]}: has no label, and others have")
        splits[split] = Found(Cells(places, part[image]), [_label(v, p) for v, p in zip(labels, places, strict=True)])
    return Findings(splits, notes=notes)
