"""What may be asked: the fields of OpenAI's API that have an effect here, each with its bounds.

Any other field is refused by name, as nothing may be asked for and then not be done. `user`, `metadata` and `store` say
nothing about the answer and are taken without effect.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from rankwise.config.base import Config, JsonObject, Number, PositiveInt, problems_of
from rankwise.system.foreign_json import GivenTwice, once

LARGEST_BODY, MESSAGES, STOPS, BIASES, CHOICES, LIKELY = 2**20, 512, 8, 300, 8, 20
Stop = Annotated[str, Field(min_length=1, max_length=64)]
Switch = Annotated[bool, Field(strict=True)]
"""True or false; 1 and "yes" are refused, as OpenAI refuses them."""
_Kind = TypeVar("_Kind", bound=Config)


class BadRequest(Exception):
    """Problems of what was asked, one sentence each."""

    def __init__(self, *problems: str, status: int = 400, parameter: str | None = None) -> None:
        super().__init__(" ".join(problems))
        self.status, self.parameter = status, parameter


class StreamOptions(Config):
    include_usage: Switch = False
    """Whether a last piece tells the numbers of tokens."""


KINDS = {"json": "schema", "regex": "regex", "choice": "choices", "grammar": "grammar"}
"""What vLLM calls the kinds of constraints."""


class Structures(Config):
    json_schema: JsonObject | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Generation(Config):
    """What both kinds of requests share."""

    model: str = Field(min_length=1, max_length=256)
    temperature: Number | None = Field(None, ge=0, le=2)
    """1, or 0 for a run that was trained with a constraint, which its answers are held to."""
    top_p: Number = Field(1.0, gt=0, le=1)
    n: Annotated[int, Field(ge=1, le=CHOICES, strict=True)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)] | None = None
    stream: Switch = False
    stream_options: StreamOptions | None = None
    presence_penalty: Number = Field(0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=BIASES)] | None = None
    user: str | None = None
    metadata: JsonObject | None = None
    store: Switch | None = None
    structured_outputs: Structures | None = None
    """What the answer may be, as vLLM has it; its earlier fields follow."""
    guided_json: JsonObject | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    @property
    def structures(self) -> dict[str, tuple[str, str]]:
        """Each place that says what the answer may be, with the kind of constraint and its text."""
        outputs = self.structured_outputs or Structures()
        given = {
            "structured_outputs.": dict(outputs) | {"json": outputs.json_schema},
            "guided_": {name: dict(self)[f"guided_{name}"] for name in KINDS},
        }
        return {
            f"{place}{name}": (kind, one if isinstance(one, str) else json.dumps(one))
            for place, values in given.items() for name, kind in KINDS.items() if (one := values[name]) is not None
        }  # fmt: skip

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @field_validator("logit_bias")
    @classmethod
    def _tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if wrong := [key for key in value or {} if not (key.isascii() and key.isdigit() and len(key) < 10)]:
            raise ValueError(f"{wrong[0]!r} is not the number of a token")
        return value

    @model_validator(mode="after")
    def _check_fields(self) -> Generation:
        if len(self.structures) > 1:
            places = " and ".join(f'"{place}"' for place in self.structures)
            raise ValueError(f"{places} each say what the answer may be; give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError('"stream_options" needs "stream"')
        return self


class ResponseFormat(Config):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonObject | None = None

    @model_validator(mode="after")
    def _schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError('"json_schema" belongs to the type "json_schema"')
        given = {"schema"} if self.json_schema is None else set(self.json_schema)
        if "schema" not in given or given - {"name", "description", "strict", "schema"}:
            raise ValueError('"json_schema" has a "schema", and may have "name", "description" and "strict"')
        return self


class FunctionName(Config):
    name: str


class NamedTool(Config):
    type: Literal["function"]
    function: FunctionName

    @property
    def name(self) -> str:
        return self.function.name


TOOL = re.compile("[a-zA-Z0-9_-]{1,64}")


class ChatBody(Generation):
    messages: Annotated[list[JsonObject], Field(min_length=1, max_length=MESSAGES)]
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    logprobs: Switch = False
    top_logprobs: Annotated[int, Field(ge=0, le=LIKELY, strict=True)] | None = None
    tools: Annotated[list[JsonObject], Field(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel_tool_calls: Switch = True
    response_format: ResponseFormat | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def structures(self) -> dict[str, tuple[str, str]]:
        every, given = super().structures, self.response_format
        if given is None or given.type == "text":
            return every
        if given.json_schema is None:
            return every | {"response_format": ("schema", '{"type": "object"}')}
        return every | {"response_format.json_schema.schema": ("schema", json.dumps(given.json_schema["schema"]))}

    @field_validator("tools")
    @classmethod
    def _names(cls, value: list[JsonObject] | None) -> list[JsonObject] | None:
        functions = [tool.get("function", tool) for tool in value or ()]
        names = [one["name"] for one in functions if isinstance(one, dict) and isinstance(one.get("name"), str)]
        for at, name in enumerate(names):
            if not TOOL.fullmatch(name):
                raise ValueError(f"{name[:80]!r} names a tool; letters, digits, _ and - are expected, 64 at most")
            if name in names[:at]:
                raise ValueError(f"several tools have the name {name!r}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> ChatBody:
        if self.tool_choice not in ("auto", "none") and not self.tools:
            raise ValueError('"tool_choice" asks for a call, and there are no "tools"')
        kinds = [kind for kind, _ in self.structures.values()]
        if self.tools and kinds and self.tool_choice != "none" and (self.tool_choice, kinds) != ("auto", ["schema"]):
            raise ValueError(f'"{next(iter(self.structures))}" leaves no room for a call of "tools"; give one of them')
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError('"max_tokens" is the earlier name of "max_completion_tokens"; give one of them')
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError('"top_logprobs" needs "logprobs"')
        return self


class CompletionBody(Generation):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=CHOICES)]
    max_tokens: PositiveInt = 16
    logprobs: Annotated[int, Field(ge=0, le=LIKELY, strict=True)] | None = None
    echo: Literal[False] = False
    suffix: None = None
    best_of: Literal[1] | None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def read_body(kind: type[_Kind], content: bytes) -> _Kind:
    """BadRequest with everything that is wrong. Clients write null for a field that they do not give."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=once, parse_constant=_no_number)
    except GivenTwice as error:
        raise BadRequest(f"the body has {error} twice.") from None
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise BadRequest(f"the body is a JSON {type(value).__name__}; an object is expected.")
    given = {key: one for key, one in value.items() if one is not None or key not in kind.model_fields}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]["loc"]
        raise BadRequest(*problems_of(error, kind), parameter=str(first[0]) if first else None) from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply.") from None


def _no_number(name: str) -> None:
    raise ValueError(name)
