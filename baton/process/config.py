"""Defines a service's flags as a frozen dataclass: each field is a `--flag`, a `BATON_FLAG` variable and a typed value.

The command line takes precedence over the environment, and that over the default. An empty variable counts as unset.
"""

import argparse
import dataclasses
import math
import os
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from baton.errors import ConfigError

Config = TypeVar("Config")
MAX_INT32 = 2**31 - 1


def flag(
    default: Any,
    description: str,
    *,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    secret: bool = False,
    least: int = 0,
    most: int = MAX_INT32,
    check: Callable[[str], None] | None = None,
) -> Any:
    """Return a field of a config dataclass. A `secret` field has an environment variable only, no flag.

    Integers must lie in [`least`, `most`]. `check` raises ConfigError for an invalid text.
    """
    spec = Flag(description, tuple(choices), metavar, secret, least, most, check)
    return dataclasses.field(default=default, metadata={"flag": spec}, repr=not secret)


@dataclasses.dataclass(frozen=True)
class Flag:
    """The description of a flag, as stored in its dataclass field."""

    description: str
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    secret: bool = False
    least: int = 0
    most: int = MAX_INT32
    check: Callable[[str], None] | None = None


def check_bytes(text: str) -> None:
    """Raise ConfigError unless `text` is `auto` or a size that `parse_bytes` accepts."""
    if text != "auto":
        parse_bytes(text)


def parse_bytes(text: str) -> int:
    """Parse a size for --kv-memory: `4GiB`, `512MiB`, `1g`, or a number of bytes. Raises ConfigError."""
    units = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:] in units else ""
    try:
        num_bytes = int(float(number.removesuffix(unit)) * units[unit])
    except (ValueError, OverflowError):
        num_bytes = 0
    if num_bytes < 1:
        raise ConfigError(f"--kv-memory: {text!r} is not a size: write 512MiB, 4GiB or a number of bytes")
    return num_bytes


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """Add one flag per field of the dataclass `config` to `parser`. A flag that is not given parses to None."""
    for name, kind, many, default, spec in _fields(config):
        if spec.secret:
            continue
        shown = "" if default in (None, (), False, "") else f" (default: {'on' if default is True else default})"
        options: dict[str, Any] = {"help": f"{spec.description}{shown} [{env_name(name)}]"}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif spec.choices:
            options["choices"] = spec.choices
        else:
            options["metavar"] = spec.metavar or kind.__name__.upper()
        if many:
            options["nargs"] = "+"
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, default=None, **options)


def from_args(config: type[Config], args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> Config:
    """Build the config from parsed flags and the environment.

    Raises ConfigError that names the flag and what it expects.
    """
    values = {}
    for name, kind, many, default, spec in _fields(config):
        raw = getattr(args, name, None)
        if raw is None:
            raw = env.get(env_name(name)) or None
        values[name] = default if raw is None else _convert(name, raw, kind, many, spec)
    return config(**values)


def to_args(config: Any) -> list[str]:
    """Return flags from which `from_args` builds an equal config, without secrets. For a supervisor to pass on."""
    args: list[str] = []
    for field_name, _, many, default, spec in _fields(type(config)):
        value, name = getattr(config, field_name), "--" + field_name.replace("_", "-")
        if spec.secret or value == default:
            continue
        if isinstance(value, bool):
            args.append(name if value else name.replace("--", "--no-", 1))
        else:
            args += [name, *(str(v) for v in value)] if many else [name, str(value)]
    return args


def described(config: type) -> Iterator[tuple[str, str, Any, Flag]]:
    """Yield (field name, environment variable, default, flag) for each field of the dataclass `config`, in order."""
    for name, _, _, default, spec in _fields(config):
        yield name, env_name(name), default, spec


def env_name(field_name: str) -> str:
    """Return the environment variable of a flag."""
    return "BATON_" + field_name.upper()


def _fields(config: type) -> Iterator[tuple[str, type, bool, Any, Flag]]:
    """Yield (name, scalar type, whether it holds several, default, flag) for each field of a config dataclass."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        many = typing.get_origin(hint) is tuple
        kind = (typing.get_args(hint) or (hint,))[0]  # also of `bool | None`, where None means unset
        yield field.name, kind, many, field.default, field.metadata["flag"]


def _convert(name: str, raw: Any, kind: type, many: bool, spec: Flag) -> Any:
    if not many:
        return _scalar(name, raw, kind, spec)
    parts = raw.split(",") if isinstance(raw, str) else raw
    return tuple(_scalar(name, part, kind, spec) for part in parts)


def _scalar(name: str, raw: Any, kind: type, spec: Flag) -> Any:
    where = f"--{name.replace('_', '-')} ({env_name(name)})"
    if kind is bool:
        if isinstance(raw, bool):
            return raw
        if raw.lower() in ("1", "true", "yes", "on"):
            return True
        if raw.lower() in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{where}: {raw!r} is neither true nor false")
    if spec.choices and raw not in spec.choices:
        raise ConfigError(f"{where}: {raw!r} is not one of {', '.join(spec.choices)}")
    convert: Callable[[str], Any] = kind
    try:
        value = convert(raw)
    except ValueError:
        raise ConfigError(f"{where}: {raw!r} is not a valid {kind.__name__}") from None
    if kind is int and not spec.least <= value <= spec.most:
        bound = f"at least {spec.least}" if value < spec.least else f"at most {spec.most}"
        raise ConfigError(f"{where} must be {bound}, not {value}")
    if spec.check:
        spec.check(value)
    if kind is float and not 0 <= value < math.inf:  # all float flags are durations
        raise ConfigError(f"{where}: {raw!r} is not a number of seconds, 0 or more")
    return value
