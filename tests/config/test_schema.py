import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from proxy.config.document import parse_document
from proxy.config.loader import load, shipped
from proxy.config.model import Config
from proxy.config.schema import schema, schema_text
from proxy.config.settings import Settings

ROOT = Path(__file__).parents[2]
FULL = Path(__file__).with_name("full.yaml")


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def uncommented(text: str) -> str:
    """The shipped file with its examples on: a comment sign with no blank, or two, after it hides an example."""
    return re.sub(r"(?m)^#(?=\S|  +\S)", "", text)


def test_file_in_the_repository_is_the_generated_one() -> None:
    assert (ROOT / "routes.schema.json").read_text() == schema_text()


def test_schema_speaks_of_every_key_and_of_no_attribute() -> None:
    definitions = schema()["$defs"]
    for kind in Settings.__subclasses__():
        if kind.__module__.startswith("proxy."):
            node = schema() if kind is Config else definitions[kind.__name__]
            mapping = next((choice for choice in node.get("anyOf", [node]) if "properties" in choice), None)
            assert mapping is not None
            assert mapping["properties"].keys() == kind.file_keys().keys()


def test_every_option_is_described() -> None:
    undescribed = [
        f"{kind.__name__}.{name}"
        for kind in Settings.__subclasses__()
        if kind.__module__.startswith("proxy.")
        for name, field in kind.model_fields.items()
        if not field.description
    ]
    assert undescribed == []


def test_defaults_read_as_in_the_file() -> None:
    server = schema()["$defs"]["Server"]["properties"]
    assert server["drain"]["default"] == "30s"
    assert server["max_body"]["default"] == "32MiB"


def test_shipped_file_is_valid(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(yaml.safe_load(shipped().read_text()))


def test_shipped_file_is_the_one_at_the_root() -> None:
    assert shipped().resolve() == ROOT / "routes.yaml"


def test_examples_in_the_shipped_file_are_valid_and_complete(
    validator: jsonschema.Draft202012Validator, tmp_path: Path
) -> None:
    text = uncommented(shipped().read_text())
    validator.validate(parse_document(text).data)
    (tmp_path / "routes.yaml").write_text(text.replace("/run/secrets/ops", "ops"))
    for name in ("cert.pem", "key.pem", "ops"):
        (tmp_path / name).write_text(name)
    config = load(tmp_path / "routes.yaml", {"WEB_KEY": "a", "BATCH_KEY_SHA256": "b" * 64, "SEARCH_KEY": "c"})
    said = {f"{kind}.{name}" for kind, name in _said(config)}
    every = {
        f"{kind.__name__}.{name}"
        for kind in Settings.__subclasses__()
        if kind.__module__.startswith("proxy.")
        for name in kind.model_fields
    }
    assert every - said == set()


def _said(section: Any) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    if isinstance(section, Settings):
        for name in section.model_fields_set:
            found |= {(type(section).__name__, name)} | _said(getattr(section, name))
    elif isinstance(section, tuple | dict):
        for item in section.values() if isinstance(section, dict) else section:
            found |= _said(item)
    return found


def test_complete_example_is_valid(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(parse_document(FULL.read_text()).data)


@pytest.mark.parametrize(
    "text",
    [
        "routes:",
        "server:\nauth:\nroutes: {a: }",
        "auth: none",
        "routes: {a: ${URL}, b: {replicas: [${URL}], fallbacks: [${ROUTE}], hedge: ${HEDGE}, strict: ${STRICT:-no}}}",
        "server: {port: ${PORT:-8080}, workers: ${N}, max_body: ${M}, drain: ${D}, gather: ${G}}",
        "routes: {a: {protocol: ${P}, balance: ${B}, health: ${H:-none}, keepalive: none, on_break: ${O}}}",
        "admin: {listen: null}",
    ],
)
def test_other_ways_to_write_are_valid(validator: jsonschema.Draft202012Validator, text: str) -> None:
    validator.validate(parse_document(text).data)


@pytest.mark.parametrize(
    "text",
    [
        "sever: {}",
        "server: {port: x}",
        "server: {port: 70000}",
        "server: {workers: 0}",
        "server: {drain: 5}",
        "server: {drain: 5 seconds}",
        "server: {max_body: 5M}",
        "auth: all",
        "discover: maybe",
        "routes: {a: ftp://x}",
        "routes: {a: {replcias: []}}",
        "routes: {a: {protocol: grpc}}",
        "routes: {a: {balance: {sticky: cookie}}}",
        "routes: {a: {keepalive: off}}",
        "routes: {a: {replicas: [{weight: 1}]}}",
        "routes: {a: {timeouts: {connect: none}}}",
        "tools: {t: {}}",
        "[]",
    ],
)
def test_mistakes_are_found(validator: jsonschema.Draft202012Validator, text: str) -> None:
    assert not validator.is_valid(parse_document(text).data)
