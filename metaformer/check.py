"""Does a mixer keep the contract, and what does it do? A table of pass, fail and note, with a reason for each.

    python -m metaformer.check my_mixer.Shift [--dim 64] [--resolution 14x14] [option=value ...]

A mixer of conf/mixer is also known by its name, like pooling. It leaves with 1 where a check failed. In tests of your
own: `from metaformer.check import assert_mixer`, then `assert_mixer(Shift, step=2)`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from metaformer.cli import answer
from metaformer.config.compose import mixer_named
from metaformer.system.errors import ConfigError

USAGE = "my_mixer.Shift [--dim 64] [--resolution 14x14] [option=value ...]"


def assert_mixer(mixer: type, *, dim: int = 64, resolution: tuple[int, int] = (14, 14), **options: Any) -> None:
    """For a test: an AssertionError with every check that `mixer`, a class, fails, one a line."""
    from metaformer.checking.checklist import assert_mixer as checked

    checked(mixer, dim=dim, resolution=resolution, **options)


def command(arguments: Sequence[str]) -> None:
    """Check the mixer that the command line names, show the table, leave with 1 where a check failed."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("mixer", nargs="?", default="")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--resolution", default="14x14")
    parser.add_argument("options", nargs="*")
    given = parser.parse_intermixed_args(arguments)
    height, _, width = given.resolution.partition("x")
    if not given.mixer:
        raise ConfigError(f"no mixer: expected {USAGE}")
    if given.dim < 1:
        raise ConfigError(f"--dim {given.dim}: expected a number of channels")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ConfigError(f"--resolution {given.resolution}: expected height x width in tokens, like 14x14")
    node = {"_target_": given.mixer} if "." in given.mixer else mixer_named(given.mixer)
    if "." not in node.get("_target_", ""):
        raise ConfigError(f"{given.mixer}: is not one mixer; expected its path or its name, {USAGE}")
    from metaformer.checking.checklist import check_mixer, show
    from metaformer.mixers.factory import from_config

    factory = from_config({**node, **_options(given.options)}, 1)[0]
    findings = check_mixer(factory, given.dim, (int(height), int(width)))
    show(findings)
    failed = [f.check for f in findings if f.status == "fail"]
    print(f"{given.mixer}: " + (f"fails {', '.join(failed)}" if failed else "keeps the contract"))
    if failed:
        raise SystemExit(1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; expected {USAGE}")


def _options(words: Sequence[str]) -> dict[Any, Any]:
    """Options as `train` reads them, dotted ones included."""
    keys = [word.partition("=")[0] for word in words]
    for word, key in zip(words, keys, strict=True):
        if "=" not in word:
            raise ConfigError(f"{word}: expected option=value")
        if keys.count(key) > 1:
            raise ConfigError(f"{key}: given {keys.count(key)} times")
    return dict(OmegaConf.to_container(OmegaConf.from_dotlist(list(words))))  # type: ignore[arg-type]


def main() -> None:
    answer(__doc__, command)


if __name__ == "__main__":
    main()
