"""Does a mixer keep the contract, and what does it do? A table of pass, fail and note, with a reason for each.

    python -m metaformer.check mixer=my_mixer.Shift [dim=64] [resolution=14x14] [option=value ...]

A mixer of conf/mixer is known by its name, like mixer=pooling, and `mixer=` may be left out. It leaves with 1 where a
check failed. In tests of your own: `from metaformer.check import assert_mixer`, then `assert_mixer(Shift, step=2)`.
"""

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from metaformer.cli import answer, words
from metaformer.config.compose import mixer_named
from metaformer.system.errors import ConfigError

USAGE = "mixer=my_mixer.Shift [dim=64] [resolution=14x14] [option=value ...]"


def assert_mixer(mixer: type, *, dim: int = 64, resolution: tuple[int, int] = (14, 14), **options: Any) -> None:
    """For a test: an AssertionError with every check that `mixer`, a class, fails, one a line."""
    from metaformer.checking.checklist import assert_mixer as checked

    checked(mixer, dim=dim, resolution=resolution, **options)


def command(arguments: Sequence[str]) -> None:
    """Check the mixer that the command line names, show the table, leave with 1 where a check failed."""
    given = words(_of_today(arguments), own=("mixer", "dim", "resolution"), plain="a mixer")
    mixers = [*(word for key, word in given.own.items() if key == "mixer"), *given.plain]
    if len(mixers) != 1:
        raise ConfigError(f"{mixers[1]}: expected option=value" if mixers else f"no mixer: expected {USAGE}")
    mixer = mixers[0]
    dim, resolution = given.own.get("dim", "64"), given.own.get("resolution", "14x14")
    if not re.fullmatch(r"0*[1-9]\d{0,5}", dim):
        raise ConfigError(f"dim={dim}: expected a number of channels")
    if not re.fullmatch(r"0*[1-9]\d{0,3}x0*[1-9]\d{0,3}", resolution):
        raise ConfigError(f"resolution={resolution}: expected height x width in tokens, like 14x14")
    node = {"_target_": mixer} if "." in mixer else mixer_named(mixer)
    if "." not in node.get("_target_", ""):
        raise ConfigError(f"{mixer}: is not one mixer; expected its path or its name, {USAGE}")
    from metaformer.checking.checklist import check_mixer, show
    from metaformer.mixers.factory import from_config

    factory = from_config({**node, **_options(given.overrides)}, 1)[0]
    height, width = map(int, resolution.split("x"))
    findings = check_mixer(factory, int(dim), (height, width))
    show(findings)
    failed = [f.check for f in findings if f.status == "fail"]
    print(f"{mixer}: " + (f"fails {', '.join(failed)}" if failed else "keeps the contract"))
    if failed:
        raise SystemExit(1)


def _of_today(arguments: Sequence[str]) -> list[str]:
    """The words, with dim=64 for the older --dim 64."""
    left = iter(arguments)
    return [f"{word[2:]}={next(left, '')}" if word in ("--dim", "--resolution") else word for word in left]


def _options(options: Sequence[str]) -> dict[Any, Any]:
    """Options as `train` reads them, dotted ones included."""
    keys = [word.partition("=")[0] for word in options]
    for word, key in zip(options, keys, strict=True):
        if "=" not in word:
            raise ConfigError(f"{word}: expected option=value")
        if keys.count(key) > 1:
            raise ConfigError(f"{key}: given {keys.count(key)} times")
    return dict(OmegaConf.to_container(OmegaConf.from_dotlist(list(options))))  # type: ignore[arg-type]


def main() -> None:
    answer(__doc__, command)


if __name__ == "__main__":
    main()
