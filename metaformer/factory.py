"""From the mixer node of a configuration to modules: import, check the options, pass what the constructor names."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import UnionType
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from metaformer.config import import_object
from metaformer.schema import ConfigError, nearest

MixerFactory = Callable[..., nn.Module]


def build(factory: MixerFactory, dim: int, resolution: tuple[int, int]) -> nn.Module:
    """Construct a mixer, passing `dim` and `resolution` where its constructor names them."""
    named = inspect.signature(factory).parameters
    return factory(**{k: v for k, v in {"dim": dim, "resolution": resolution}.items() if k in named})


def from_config(node: Mapping[str, Any], stages: int) -> list[MixerFactory]:
    """One factory per stage from a mixer node: `_target_` and options, or `stage1`, `stage2`, ... with one each."""
    if "_target_" in node:
        return [_factory(node, "mixer")] * stages
    return [_factory(node[f"stage{i}"], f"mixer.stage{i}") for i in range(1, stages + 1)]


@contextmanager
def contract(mixers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While a model runs, see that its mixers, by their places, do what the contract wants.

    Raises:
        ConfigError: one that crashes, writes to its input, or returns another shape or dtype, NaN or infinity.
    """
    running: list[tuple[str, nn.Module, Tensor]] = []

    def enter(place: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda mixer, inputs: running.append((f"{type(mixer).__name__} at {place}", mixer, inputs[0].clone()))

    def leave(mixer: nn.Module, inputs: tuple[Tensor], output: Any) -> None:
        name, _, given = running.pop()
        wanted, got = list(given.shape), list(getattr(output, "shape", []))
        if got != wanted:
            raise ConfigError(f"mixer {name} returned {got or type(output).__name__}, expected {wanted}")
        if output.dtype != given.dtype:
            raise ConfigError(f"mixer {name} returned {output.dtype}, expected {given.dtype}")
        if not torch.equal(inputs[0], given):
            raise ConfigError(f"mixer {name} wrote to its input, expected that it is left as it was")
        if not output.isfinite().all():
            raise ConfigError(f"mixer {name} returned NaN or infinity, expected finite numbers")

    hooks = [m.register_forward_pre_hook(enter(place)) for place, m in mixers.items()]
    hooks += [m.register_forward_hook(leave) for m in mixers.values()]
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if not running:
            raise
        name, mixer, given = running[-1]
        path = f"{type(mixer).__module__}.{type(mixer).__name__}"
        raise ConfigError(
            f"mixer {name} fails on {list(given.shape)}: {type(error).__name__}: {error}; expected [B, C, H, W] -> the "
            f"same shape (python -m metaformer.check {path} tells more)"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def _factory(node: Mapping[str, Any], key: str) -> MixerFactory:
    """The class that `_target_` names, with its options bound; an option that it does not name is an error."""
    target = import_object(node["_target_"], f"{key}._target_")
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise ConfigError(f"{key}._target_={node['_target_']}: expected a torch.nn.Module class")
    options = {name: value for name, value in node.items() if name != "_target_"}
    parameters = inspect.signature(target).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    own = [n for n, p in parameters.items() if p.kind not in variadic and n not in ("dim", "resolution")]
    hints = _hints(target)
    for name, value in options.items():
        if name not in own:
            hint = nearest(name, own) or f"; it has {', '.join(own) or 'none'}"
            raise ConfigError(f"{key}.{name}: {target.__name__} has no such option{hint}")
        if name in hints and not _fits(value, hints[name]):
            raise ConfigError(f"{key}.{name}={value}: expected {inspect.formatannotation(hints[name])}")
    missing = [n for n in own if parameters[n].default is inspect.Parameter.empty and n not in options]
    if missing:
        raise ConfigError(f"{key}: {target.__name__} needs {', '.join(missing)}; add +{key}.{missing[0]}=...")
    return partial(target, **options) if options else target


def _hints(target: type) -> dict[str, Any]:
    """The constructor's annotations, or none where they name what cannot be resolved at run time."""
    try:
        return get_type_hints(target.__init__)  # type: ignore[misc]
    except (NameError, TypeError):
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a configuration has the annotated type; only plain types and their unions are judged."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if not all(isinstance(kind, type) for kind in kinds):
        return True
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
