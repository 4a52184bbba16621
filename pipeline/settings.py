"""Settings of stages: typed, frozen, each with a meaning, a source and a role. Those that stages share come in groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic.fields import FieldInfo

# How a setting counts towards the key of a run:
#   result     its value changes the result: hashed
#   execution  it changes only how the result is computed (device, workers): recorded, not hashed
#   neutral    added after a release: left out of the hash while it has its default, so that old artifacts stay valid
#   external   names files from outside (or artifacts): their content is hashed, their names are not
#   model      a model (or several), as `hub/name@revision`, a local folder, or the name of one that an installed package
#              ships: the revision or the folder's content is hashed
Role = Literal["result", "execution", "neutral", "external", "model"]


# A path in a recipe is a TOML string, relative to the folder of irpipe.toml.
def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("the path is empty")
    return value


FilePath = Annotated[Path, Strict(False), BeforeValidator(_not_empty)]
Sources = Annotated[tuple[str, ...], Strict(False)]

_RULES = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)


class Group(BaseModel):
    """Settings that belong together and that several stages share: a table in the stage's table, ``[refl.lora]``.

    A stage with other defaults declares a subclass. A setting of a group is named ``group.setting`` everywhere.
    """

    model_config = _RULES


class Config(BaseModel):
    """The settings of one stage: typed, frozen, without unknown names. Fields are made with `setting` and `group`."""

    model_config = _RULES

    def unused(self) -> dict[str, str]:
        """Settings without effect under the other settings, and why. Giving one is an error; none counts towards the key."""
        return {}

    def replaced(self) -> set[str]:
        """Settings that another one replaces (vectors replace an embedder). They may be given; none counts towards the key."""
        return set()

    def faults(self) -> Iterator[str]:
        """What is wrong between settings that are right by themselves, each fault in one line."""
        for name, why in self.unused().items():
            if given(self, name):
                yield f"{name} has no effect: {why}; leave one of them out"

    @model_validator(mode="after")
    def _all_faults_at_once(self) -> Self:
        if faults := list(self.faults()):
            raise ValueError("\n".join(faults))
        return self


def setting(
    default: Any = ...,
    *,
    meaning: str,
    source: str | None = None,
    role: Role = "result",
    check: str | None = None,
    **limits: Any,
) -> Any:
    """A field of a `Config` or a `Group`.

    Args:
        default: the default, or nothing for a setting that must be given.
        meaning: what it means, with its unit and special values, as ``irpipe cite`` prints it.
        source: where the default comes from (paper, section; released code), if it has one.
        role: how it counts towards the key.
        check: ``module:function``, which is called with a model that the setting names before anything runs, and raises where it
            cannot be taken, by what its files of JSON say.
        limits: pydantic's own constraints (``ge``, ``le``, ...).
    """
    return Field(default, description=meaning, json_schema_extra={"source": source, "role": role, "check": check}, **limits)


def group(kind: type[Group]) -> Any:
    """A field of a `Config` that holds a group of settings, each at its default."""
    return Field(default_factory=kind, description=kind.__doc__)


@cache
def settings_of(config: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Every setting of a config by name, in order; those of a group as ``group.setting``."""
    settings: dict[str, FieldInfo] = {}
    for name, info in config.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Group):
            settings.update({f"{name}.{inner}": field for inner, field in settings_of(kind).items()})
        else:
            settings[name] = info
    return settings


def groups_of(config: type[BaseModel]) -> Mapping[str, type[Group]]:
    """The groups of settings of a config, by name."""
    kinds = {name: info.annotation for name, info in config.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Group)}


def value_of(config: BaseModel, name: str) -> Any:
    """The value of a setting, also of one in a group."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def given(config: BaseModel, name: str) -> bool:
    """Whether a setting is given, rather than left at its default."""
    outer, dot, inner = name.partition(".")
    if outer not in config.model_fields_set:
        return False
    return not dot or given(getattr(config, outer), inner)


def given_names(config: BaseModel) -> tuple[str, ...]:
    """The settings that are given, sorted."""
    return tuple(sorted(name for name in settings_of(type(config)) if given(config, name)))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name as tables in a table: ``{"lora.rank": 8}`` is ``{"lora": {"rank": 8}}``."""
    tables: dict[str, Any] = {}
    for name, value in flat.items():
        outer, dot, inner = name.partition(".")
        if dot:
            tables.setdefault(outer, {})[inner] = value
        else:
            tables[name] = value
    return tables


def default_config(config: type[Config], **values: Any) -> Config:
    """A config with some values and otherwise defaults, without checks: to ask what it would read or leave without effect."""
    tables = {name: kind.model_construct() for name, kind in groups_of(config).items()}
    for name, value in values.items():
        kind = groups_of(config).get(name)
        tables[name] = kind.model_construct(**value) if kind is not None and isinstance(value, Mapping) else value
    return config.model_construct(None, **tables)


def _declared(config: type[BaseModel], name: str, what: str) -> Any:
    """What `setting` was given beside pydantic's own."""
    extra = settings_of(config)[name].json_schema_extra
    return extra[what] if isinstance(extra, dict) else None


def role_of(config: type[BaseModel], name: str) -> Role:
    """The role a setting was declared with."""
    role: Role = _declared(config, name, "role") or "result"
    return role


def source_of(config: type[BaseModel], name: str) -> str | None:
    """The source a setting's default was declared with."""
    source: str | None = _declared(config, name, "source")
    return source


def check_of(config: type[BaseModel], name: str) -> str | None:
    """The function that checks a model which a setting names."""
    check: str | None = _declared(config, name, "check")
    return check


def hashed_names(config: Config, roles: Sequence[Role]) -> list[str]:
    """The settings of some roles that have an effect under the other settings."""
    idle = {*config.unused(), *config.replaced()}
    return [name for name in settings_of(type(config)) if role_of(type(config), name) in roles and name not in idle]


def hashed_config(config: Config) -> dict[str, Any]:
    """The settings that count towards the key by their value."""
    kinds = settings_of(type(config))
    values = {name: value_of(config, name) for name in hashed_names(config, ("result", "neutral"))}
    return {
        name: value for name, value in values.items() if role_of(type(config), name) == "result" or value != kinds[name].default
    }


def shown_config(config: Config) -> dict[str, Any]:
    """All settings by name, as JSON values."""
    dumped = config.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for name in settings_of(type(config)):
        outer, dot, inner = name.partition(".")
        flat[name] = dumped[outer][inner] if dot else dumped[outer]
    return flat
