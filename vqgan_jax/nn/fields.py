"""From nested mappings to frozen dataclasses and back: a field of a class is a key of a config.

The field's line says everything about the key: name, type, default. A section may have kinds, each with a class of its
own: the key `kind` names one of a table, and the other keys are that class's fields. Flax modules are such classes.
"""

import dataclasses
import difflib
import typing
from collections.abc import Collection, Mapping
from typing import Any

from jax.typing import DTypeLike

DTYPES = ("float32", "bfloat16")


def derived(default: Any) -> Any:
    """Declares a field that is no key: the program fills it in."""
    return dataclasses.field(default=default, metadata={"derived": True})


def section(default: Any, kinds: Mapping[str, type]) -> Any:
    """Declares a section with kinds: `kinds` are the classes by name, `default` an instance of one of them."""
    return dataclasses.field(default=default, metadata={"kinds": kinds})


def keys(cls: type) -> dict[str, Any]:
    """Returns the fields that are keys, by name; `parent` and `name` belong to Flax."""
    fields = {field.name: field for field in dataclasses.fields(cls) if not field.metadata.get("derived")}
    return {name: field for name, field in fields.items() if name not in ("parent", "name")}


def kinds(cls: type) -> dict[str, Mapping[str, type]]:
    """Returns the sections of `cls` that have kinds, by name."""
    return {name: field.metadata["kinds"] for name, field in keys(cls).items() if "kinds" in field.metadata}


def check_known(path: str, value: Any, table: Collection[Any]) -> None:
    """Raises ValueError where the value of the key `config.path` is none of its table."""
    if value not in table:
        raise ValueError(f"`config.{path}` must be one of {', '.join(map(str, table))}; got {value!r}.")


def read(mapping: Mapping[str, Any], cls: Any, path: str = "config") -> Any:
    """Returns an instance of `cls`; a key that is missing has its default.

    Args:
      mapping: values by key, sections as mappings.
      cls: a dataclass. Its method `check`, where it has one, may raise ValueError for values that do not fit together.
      path: of the section, for errors.

    Raises:
      ValueError: an unknown key (the nearest known one is named), a value of another type, or what `check` says.
    """
    known = keys(cls)
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"; the nearest is `{path}.{near[0]}`. Known: {', '.join(known)}." if near else "; it has none."
            raise ValueError(f"`{path}` has no key `{key}`{hint}")
    values = {name: _read_value(mapping[name], known[name], f"{path}.{name}") for name in mapping}
    instance = cls(**values)
    if hasattr(instance, "check"):
        instance.check()
    return instance


def _read_value(value: Any, field: Any, path: str) -> Any:
    if not dataclasses.is_dataclass(field.type):
        return convert(value, field.type, path)
    if not isinstance(value, Mapping):
        raise ValueError(f"`{path}` must be a section of keys; got {value!r}. Set one of its keys instead.")
    if "kinds" not in field.metadata:
        return read(value, field.type, path)
    table, values = field.metadata["kinds"], dict(value)
    kind = values.pop("kind", kind_of(field.default, table))
    check_known(f"{path.removeprefix('config.')}.kind", kind, table)
    return read(values, table[kind], path)


def convert(value: Any, hint: Any, path: str) -> Any:
    """Returns `value` as the type of a field: whole numbers pass as floats and lists as tuples, nothing else is bent.

    Raises:
      ValueError: the value is of another type.
    """
    if hint is DTypeLike:
        check_known(path.removeprefix("config."), value, DTYPES)
        return value
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        types = typing.get_args(hint)
        types = types[:1] * len(value) if types[-1] is Ellipsis else types
        if len(types) == len(value):
            return tuple(convert(v, each, path) for v, each in zip(value, types, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    expected = hint if typing.get_origin(hint) else hint.__name__
    raise ValueError(f"`{path}` must be of type {expected}; got {value!r}.")


def section_of(nested: Mapping[str, Any], name: str) -> Any:
    """Returns a section of nested values; an empty one where there is none, of which `read` says what is wrong."""
    section = nested.get(name)
    return section if isinstance(section, Mapping) else {}


def kind_of(instance: Any, table: Mapping[str, type]) -> str:
    """Returns the name of an instance's class in a table of kinds."""
    return next(name for name, cls in table.items() if cls is type(instance))


def write(instance: Any) -> dict[str, Any]:
    """Returns the nested mapping of an instance, with every key: what `read` reads."""
    written = {}
    for name, field in keys(type(instance)).items():
        value = getattr(instance, name)
        if dataclasses.is_dataclass(field.type):
            kind = {"kind": kind_of(value, field.metadata["kinds"])} if "kinds" in field.metadata else {}
            value = kind | write(value)
        written[name] = value
    return written
