"""What a client of the stream routes sends: a prompt for one stage, and the chat completion it becomes.

Here: its members, which of them an endpoint refuses, and how. Whether its model exists is `routing`'s to say.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictBool, StrictStr, ValidationError
from pydantic_core import PydanticCustomError

from proxy.errors import ClientError, InvalidRequest
from proxy.wire.stages import LONGEST_STAGE_ID, is_stage_id

_MOST = {"most": LONGEST_STAGE_ID}


class UnprocessableRequest(ClientError):
    """The body is not an `LLMRequest`. `problems`: `{"loc","msg","type"}` for each, `loc` beginning with "body"."""

    status = 422

    def __init__(self, problems: list[dict[str, object]]) -> None:
        super().__init__("; ".join(_told(problem) for problem in problems))
        self.problems = problems


class Unsupported(ClientError):
    """The route is one that the gateway does not know how to use for this endpoint."""

    status = 501
    default_code = "unsupported"


def _stage_id(value: object) -> object:
    if isinstance(value, str) and not is_stage_id(value):
        raise PydanticCustomError(
            "stage_id", "Give at most {most} characters, none of them a control character.", _MOST
        )
    return value


def _whole_numbers(value: object) -> tuple[Any, Any] | None:
    return _pair(value, (int,), "Give one whole number, or a pair of them: [first, synthesis].")


def _finite_numbers(value: object) -> tuple[Any, Any] | None:
    return _pair(value, (int, float), "Give one number, or a pair of them: [first, synthesis].")


def _pair(value: object, kinds: tuple[type, ...], hint: str) -> tuple[Any, Any] | None:
    """`value` or its two numbers; one number stands for both. A bool is no number, nor is infinity."""
    if value is None:
        return None
    numbers: list[Any] = value if isinstance(value, list) else [value]
    if len(numbers) not in (1, 2) or not all(type(n) in kinds and abs(n) < float("inf") for n in numbers):
        raise PydanticCustomError("number_or_pair", "{hint}", {"hint": hint})
    return numbers[0], numbers[-1]


class LLMRequest(BaseModel):
    """One stage's request. Members it does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    stage_id: Annotated[StrictStr, BeforeValidator(_stage_id)]
    model_container: StrictStr
    user_prompt: StrictStr
    system_prompt: StrictStr = ""
    max_tokens: Annotated[tuple[int, int] | None, BeforeValidator(_whole_numbers)] = None
    temperature: Annotated[tuple[int | float, int | float] | None, BeforeValidator(_finite_numbers)] = None
    synthesis: StrictBool = False
    strategy: Literal["chat_completion", "tool_call", "synthesis"] | None = None
    stream: StrictBool | None = None

    @classmethod
    def parse(cls, raw: bytes | str) -> "LLMRequest":
        """The request in a body. Raises UnprocessableRequest, whose words repeat nothing of it."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise UnprocessableRequest(
                [{"loc": ["body", *each["loc"]], "msg": each["msg"], "type": each["type"]} for each in found]
            ) from None

    def refuse_misuse(self, path: str) -> None:
        """Raise InvalidRequest where the endpoint `path` cannot do what is asked."""
        room, _, kind = path.strip("/").split("/")
        if kind == "chat" and self.strategy == "tool_call":
            raise InvalidRequest(
                f"strategy 'tool_call' needs tools: send this request to /{room}/v1/toolchain.", param="strategy"
            )
        if room == "stream" and self.stream is False:
            raise InvalidRequest(
                f"This endpoint always streams: for one JSON answer send this request to /completion/v1/{kind}, "
                "or leave `stream` out.",
                param="stream",
            )

    def chat_completion(self, *, stream: bool) -> dict[str, object]:
        """The members of the chat completion it becomes, with the first numbers of the pairs."""
        return {"model": self.model_container, "messages": self._messages(), **self._numbers(0), "stream": stream}

    def synthesis_numbers(self) -> dict[str, object]:
        """`max_tokens` and `temperature`, as far as they were given, for the synthesis pass."""
        return self._numbers(1)

    def _messages(self) -> list[dict[str, str]]:
        said = [("system", self.system_prompt), ("user", self.user_prompt)]
        return [{"role": role, "content": text} for role, text in said if text or role == "user"]

    def _numbers(self, index: int) -> dict[str, object]:
        pairs = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {name: pair[index] for name, pair in pairs.items() if pair is not None}


def stage_id_of(raw: str) -> str:
    """The stage's id in a message that may be anything: "" where none can be told."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return ""
    found = value.get("stage_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and is_stage_id(found) else ""


def _told(problem: dict[str, object]) -> str:
    loc = problem["loc"]
    place = ".".join(str(step) for step in loc[1:]) if isinstance(loc, list) else ""
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
