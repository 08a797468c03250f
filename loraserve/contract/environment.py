"""What a pod tells its process: environment variables, which the process reads and `infra` writes from one definition."""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from loraserve.contract.document import explain
from loraserve.errors import LoraserveError
from loraserve.log import Format

Port = Annotated[int, Field(ge=0, lt=1 << 16)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Url = Annotated[str, StringConstraints(pattern=r"^https?://")]

CREDENTIALS_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts the `token` and the `ca.crt` of a pod's service account."""
_OF_THE_KUBELET = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")


class InvalidEnvironment(LoraserveError):
    """An environment variable is missing, misspelt, or has a value that cannot be used; the message names it."""


class KubernetesSettings(BaseModel):
    """The API server, and as whom to ask it. Given as a whole or not at all; every field has a variable of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Url
    """The kubelet tells every container where it is."""
    namespace: str
    credentials: Path = CREDENTIALS_DIR
    """Folder of `token` and `ca.crt`."""


class ProcessSettings(BaseSettings):
    """`port` of a process whose prefix is GATEWAY_ is read from GATEWAY_PORT, `kubernetes.url` from GATEWAY_KUBERNETES_URL."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="_", env_nested_max_split=1)
    prefix: ClassVar[str]

    log_format: Format = "text"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing is read behind the caller's back."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Raises InvalidEnvironment. An empty variable is none."""
        given = {name: value for name, value in environment.items() if value}
        cls._refuse_strangers(given)
        source = EnvSettingsSource(cls, env_prefix=cls.prefix)
        source.env_vars = {name.lower(): value for name, value in (_of_the_kubelet(cls.prefix, given) | given).items()}
        try:
            return cls(**source())
        except ValidationError as error:
            problems = re.sub(r"^[^:]+", lambda path: cls._variable(path[0]), explain(error), flags=re.MULTILINE)
            raise InvalidEnvironment(problems) from None

    @classmethod
    def variables(cls, **values: Any) -> dict[str, Any]:
        """What tells the process these values, by name; `kubernetes_url` stands for `kubernetes.url`, None is not told.

        A value may also be what stands for it in a pod's specification. Raises TypeError for what nobody would read.
        """
        if strangers := values.keys() - set(cls._paths()):
            raise TypeError(f"{cls.__name__} has no {', '.join(sorted(strangers))}")
        return {cls._variable(path): _text(value) for path, value in values.items() if value is not None}

    @classmethod
    def _refuse_strangers(cls, environment: Mapping[str, str]) -> None:
        known = {cls._variable(path): path for path in cls._paths()}
        for name in environment:
            if name.startswith(cls.prefix) and name not in known:
                near = difflib.get_close_matches(name.removeprefix(cls.prefix).lower(), known.values(), n=1)
                advice = f"did you mean {cls._variable(near[0])}?" if near else f"there are {', '.join(known)}"
                raise InvalidEnvironment(f"{name} is no variable of this process; {advice}")

    @classmethod
    def _paths(cls) -> Iterator[str]:
        """Of every field that has a variable of its own, such as `port` and `kubernetes_url`."""
        for name, field in cls.model_fields.items():
            kinds = (field.annotation, *get_args(field.annotation))
            groups = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, KubernetesSettings)]
            yield from (f"{name}_{inner}" for inner in groups[0].model_fields) if groups else (name,)

    @classmethod
    def _variable(cls, path: str) -> str:
        """The name of the variable that a field is read from, and the rest of its path: `AGENT_ENVELOPE.rank`."""
        joined = path.replace(".", "_")
        if joined in cls._paths():
            return cls.prefix + joined.upper()
        field, dot, rest = path.partition(".")
        return cls.prefix + field.upper() + dot + rest


def _of_the_kubelet(prefix: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Where the API server is, as the kubelet tells every container."""
    given = {name: environment[name] for name in _OF_THE_KUBELET if name in environment}
    if not given:
        return {}
    if missing := set(_OF_THE_KUBELET) - given.keys():
        raise InvalidEnvironment(f"{missing.pop()} is missing; the kubelet sets it beside {next(iter(given))}")
    host, port = given.values()
    return {f"{prefix}KUBERNETES_URL": f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"}


def _text(value: Any) -> Any:
    match value:
        case BaseModel():
            return value.model_dump_json(by_alias=True)
        case int() | float() | Path():
            return str(value)
        case _:
            return value
