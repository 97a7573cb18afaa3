"""`metaformer VERB ...`, the same as `python -m metaformer.VERB ...`."""

import os
import sys
from importlib import import_module
from pathlib import Path

from metaformer.system.errors import nearest

VERBS = {
    "train": "train one run, or with -m or experiments=NAME many",
    "evaluate": "evaluate a finished run again, or weights from a file",
    "predict": "the classes of images by a finished run, as a table",
    "export": "the network of a finished run as a file for other programs",
    "check": "does a mixer keep the contract, and what does it do",
    "cost": "parameters, MACs, activations and memory of models",
    "plan": "what a study costs, and what its seeds can show",
    "report": "what a study found",
    "probe": "what trained mixers do",
    "dashboard": "a study on wandb",
}


def main() -> None:
    sys.path.insert(0, str(Path.cwd()))  # as with `python -m`, so that mixers of the working directory are found
    if sys.argv[1:2] == ["-sc"]:  # a shell asks what could follow: Hydra's completion knows the words of `train`
        line = os.environ.get("COMP_LINE", "")
        os.environ["COMP_LINE"] = line.replace(" train ", " ", 1)
        sys.argv.insert(1, "train")
    verb, help_of_all = (sys.argv[1:2] or ["--help"])[0], "usage: metaformer VERB ...; VERB --help tells more\n"
    if verb in ("-h", "--help"):
        print(help_of_all + "\n" + "\n".join(f"  {name:10} {words}" for name, words in VERBS.items()))
        return
    if verb not in VERBS:
        hint = nearest(verb, VERBS) or f"; expected one of {', '.join(VERBS)}"
        print(f"error: {verb}: no such verb{hint}", file=sys.stderr)
        raise SystemExit(2)
    del sys.argv[1]
    import_module(f"metaformer.{verb}").main()


if __name__ == "__main__":
    main()
