"""The network of a finished run as a file for other programs, compared with the network before it is written.

    python -m metaformer.export run=runs/RUN format=onnx|torch|safetensors [out=FILE]

onnx runs in ONNX Runtime and elsewhere (extra `export`), torch is a program of torch.export that needs nothing of this
package, safetensors are weights that `metaformer.load(FILE)` reads. All take images as `metaformer.load(...).transform`
gives them and hold the configuration, the classes, and mean and deviation. Without out= the file is called as the run.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from metaformer.cli import answer, words
from metaformer.runs.finished import finished
from metaformer.system.errors import ConfigError, install, nearest
from metaformer.system.files import write

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}


def command(arguments: Sequence[str]) -> None:
    """Export the run that the command line names."""
    given = words(arguments, own=("run", "format", "out"), groups=()).own
    if missing := [key for key in ("run", "format") if key not in given]:
        raise ConfigError(f"{missing[0]}: expected run=FOLDER format={'|'.join(SUFFIXES)}")
    format, folder = given["format"], Path(given["run"])
    if format not in SUFFIXES:
        raise ConfigError(f"format={format}: expected one of {', '.join(SUFFIXES)}{nearest(format, SUFFIXES)}")
    finished(folder)
    suffix = SUFFIXES[format]
    out = Path(given.get("out", f"{folder.resolve().name}{suffix}")).expanduser()
    if out.suffix != suffix:
        raise ConfigError(f"out={out}: expected a file that ends in {suffix}")
    if not out.parent.is_dir():
        raise ConfigError(f"out={out}: {out.parent} is no folder")
    if format == "onnx" and not all(map(find_spec, ("onnx", "onnxscript"))):
        raise ConfigError(f"format=onnx: needs {install('export')}")
    from metaformer.training.export import export_run

    exported = export_run(folder, format)
    write(out, exported.content)
    same = f"its logits are the network's (largest difference {exported.difference:.1g} of the largest logit)"
    unseen = f"not compared with the network: {install('export')}"
    print(f"written: {out}; {same if exported.difference is not None else unseen}")


def main() -> None:
    answer(__doc__, command)


if __name__ == "__main__":
    main()
