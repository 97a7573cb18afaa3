"""From the mixer node of a configuration to modules: import, check the options, pass what the constructor names."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from metaformer.config.compose import mixer_named
from metaformer.config.options import check_options
from metaformer.config.validate import mixer_nodes
from metaformer.mixers.adapter import module_class

MixerFactory = Callable[..., nn.Module]
AnyMixer = MixerFactory | str


def build(factory: MixerFactory, dim: int, resolution: tuple[int, int]) -> nn.Module:
    """Construct a mixer, passing `dim` and `resolution` where its constructor names them."""
    named = inspect.signature(factory).parameters
    return factory(**{k: v for k, v in {"dim": dim, "resolution": resolution}.items() if k in named})


def from_config(node: Mapping[str, Any], stages: int) -> list[MixerFactory]:
    """One factory per stage from a mixer node: `_target_` and options, or `stage1`, `stage2`, ... with one each."""
    nodes = mixer_nodes(node, stages)
    built = [_factory(own, key) for key, own in nodes.items()]
    return built if len(built) == stages else built * stages


def factories(mixer: AnyMixer | Sequence[AnyMixer], stages: int) -> list[MixerFactory]:
    """One factory per stage from a mixer or from one for each stage, each a class, a `functools.partial` or a name.

    A name is that of a file of `conf/mixer`, packaged or of the working directory, like "pooling" or "ppaa".

    Raises:
        ConfigError: no mixer has the name; it says the nearest.
        ValueError: another number of mixers than of stages, or a module that is made already.
    """
    if isinstance(mixer, nn.Module):
        raise ValueError(f"mixer is one {type(mixer).__name__}; expected the class, of which each block makes its own")
    if isinstance(mixer, str):
        return from_config(mixer_named(mixer), stages)
    if not isinstance(mixer, Sequence):
        return [mixer] * stages
    if len(mixer) != stages:
        raise ValueError(f"mixer has {len(mixer)} values for {stages} stages")
    return [factory for one in mixer for factory in factories(one, 1)]


def node_of(factory: MixerFactory) -> dict[str, Any] | None:
    """The node from which `from_config` makes a mixer again; None where plain data cannot say it, as of a lambda."""
    bound = factory if isinstance(factory, partial) else partial(factory)
    kind, options = bound.func, dict(bound.keywords)
    if bound.args or not isinstance(kind, type) or "<" in kind.__qualname__ or not _plain(options):
        return None
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **options}


def _plain(value: Any) -> bool:
    """Whether a value is numbers, text and their lists and dicts."""
    if isinstance(value, list | tuple | dict):
        return all(map(_plain, [*value, *value.values()] if isinstance(value, dict) else value))
    return value is None or type(value) in (bool, int, float, str)


def _factory(node: Mapping[str, Any], key: str) -> MixerFactory:
    """The class that `_target_` names, with its options bound; an option that it does not name is an error."""
    target = module_class(node["_target_"], f"{key}._target_")
    options = {name: value for name, value in node.items() if name != "_target_"}
    check_options(target, options, key, given=("dim", "resolution"))
    return partial(target, **options) if options else target
