"""What every section of the file, and every value in it, has in common.

Which sections there are is in `model` and `route`; which kinds of value, in `values` and `secret`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema


class Settings(BaseModel):
    """One mapping of the file. Unknown keys are errors; a key with nothing after it counts as left out.

    A section with a `short_form` may also be given as plain text, which `expand_short_form` turns into the mapping.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    short_form: ClassVar[str | None] = None

    @classmethod
    def file_keys(cls) -> dict[str, str]:
        """Attribute by file key: `{"max_body": "max_body_bytes", ...}`."""
        return {field.alias or name: name for name, field in cls.model_fields.items()}

    @classmethod
    def expand_short_form(cls, text: str) -> dict[str, object]:
        return {cls.short_form: text} if cls.short_form else {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: object) -> object:
        if data is None:
            return {}
        if isinstance(data, str) and cls.short_form:
            return cls.expand_short_form(data)
        if not isinstance(data, dict):
            return data
        known = cls.file_keys()
        return {key: value for key, value in data.items() if value is not None or key not in known}


@dataclass(frozen=True, slots=True, eq=False)  # Annotated hashes its metadata
class Kind:
    """A kind of value, for use in Annotated: how it is read, how the file's schema describes it, how it is printed.

    `parse` takes what YAML gave and raises ValueError with a sentence for the operator; a parser with `beside_file` set
    also takes the folder that relative paths count from. `show` gives back what the file would say.
    """

    parse: Callable[..., Any]
    schema: dict[str, Any]
    show: Callable[[Any], Any] = str
    beside_file: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        shown = core_schema.plain_serializer_function_ser_schema(self.show, when_used="json")
        if self.beside_file:
            return core_schema.with_info_plain_validator_function(self._parse_beside, serialization=shown)
        return core_schema.no_info_plain_validator_function(self.parse, serialization=shown)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return dict(self.schema)

    def _parse_beside(self, value: object, info: core_schema.ValidationInfo) -> object:
        return self.parse(value, (info.context or {}).get("folder"))


@dataclass(frozen=True, slots=True)
class OrNone:
    """Metadata for `X | None`: the file says None with the word `none`, so that emptiness never turns a part off."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        shown = core_schema.wrap_serializer_function_ser_schema(self._show, when_used="json")
        return core_schema.no_info_before_validator_function(self._read, handler(source), serialization=shown)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        choices = [choice for choice in handler(schema)["anyOf"] if choice != {"type": "null"}]
        return {"anyOf": [*choices, {"const": "none"}]}

    @staticmethod
    def _read(value: object) -> object:
        return None if value == "none" else value

    @staticmethod
    def _show(value: object, show: core_schema.SerializerFunctionWrapHandler) -> object:
        return "none" if value is None else show(value)
