"""Multipart forms: text fields checked by a schema, images read whole, their names never looked at."""

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from promptnet.serve.problems import Problem, invalid

Model = TypeVar("Model", bound=BaseModel)
_MAX_FIELDS = 64
_MAX_FIELD_BYTES = 64 * 1024
_AS_JSON = ("edits",)


@dataclass(frozen=True)
class Form:
    """What a form held."""

    fields: dict[str, str]
    files: list[bytes]

    def checked(self, model: type[Model]) -> Model:
        """The text fields by a schema.

        Raises:
            Problem: 422, with the field.
        """
        values: dict[str, Any] = dict(self.fields)
        for name in _AS_JSON:
            if name in values:
                values[name] = _parsed(name, values[name])
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise validation_problem(error.errors()) from error


async def read_form(request: Request, *, files: tuple[str, ...], max_files: int) -> Form:
    """Read a form whose files stand under one of these names.

    Raises:
        Problem: it is no form, or holds a file under another name, or too many.
    """
    async with request.form(max_files=max_files + 1, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES) as form:
        fields: dict[str, str] = {}
        found: list[bytes] = []
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields[name] = value
            elif name in files:
                found.append(await value.read())
            else:
                raise invalid(f"files stand under {files[0]}", files[0])
    if not 1 <= len(found) <= max_files:
        raise invalid(f"there are {len(found)} files, where 1 to {max_files} are wanted", files[0])
    return Form(fields, found)


def form_schema(model: type[BaseModel], files: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads such a form."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    for name in _AS_JSON:
        if name in schema["properties"]:
            schema["properties"][name] = {"type": "string", "description": "JSON, as in POST /v1/images"}
    images = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    schema["properties"][files] = images
    schema["required"] = [*schema.get("required", []), files]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def validation_problem(errors: Any) -> Problem:
    """422 with every faulty field; what was sent is not repeated."""
    found = [
        {
            "field": ".".join(str(part) for part in error["loc"] if part != "body") or "body",
            "message": str(error["msg"]).removeprefix("Value error, "),
        }
        for error in errors
    ]
    first = found[0] if found else {"field": "body", "message": "it cannot be read"}
    return Problem(422, "invalid", f"{first['field']}: {first['message']}", errors=found)


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{name} must be JSON", name) from error
