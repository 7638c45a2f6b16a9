"""The running API against its own OpenAPI document: made-up requests, right and wrong ones, each answered as it was promised.

More of them, and others each time: HUBLINE_SCHEMA_EXAMPLES=500 pytest tests/cloud/test_api_schema.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.cloud.api_desk import Running, running_api

EXAMPLES = int(os.environ.get("HUBLINE_SCHEMA_EXAMPLES", "6"))
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
"""Not: that every request that fits is accepted. Hubs, tasks and versions must exist, too."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture(scope="module")
def document(api: Running) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{api.url}/api/v1/openapi.json", trust_env=False).json()
    return found


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_running_api_keeps_its_document(api: Running, document: dict[str, Any], mode: GenerationMode) -> None:
    """No made-up request brings it down; every answer has a status and a form that the document names."""
    load_all_checks()
    checks = CHECKS.get_by_names(CHECKED)
    # Without a token nothing answers, says a test of its own: here every request has one.
    schema = schemathesis.openapi.from_dict({key: value for key, value in document.items() if key != "security"})
    headers = {"Authorization": f"Bearer {api.tokens['admin']}"}
    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == "/api/v1/events":  # It never ends; tests of its own read it.
            continue
        asked.add(operation.label)
        if mode is GenerationMode.NEGATIVE and not _takes_anything(document, operation.path, operation.method):
            continue  # There is nothing that could be wrong.

        @hypothesis_settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize="HUBLINE_SCHEMA_EXAMPLES" not in os.environ,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode))
        def ask(case: Case) -> None:
            case.call_and_validate(base_url=api.url, headers=headers, checks=checks, timeout=20)

        ask()
    assert len(asked) == sum(len(methods) for methods in document["paths"].values()) - 1


def _takes_anything(document: dict[str, Any], path: str, method: str) -> bool:
    said = document["paths"][path][method.lower()]
    return bool(said.get("parameters")) or "requestBody" in said


def test_document_tells_a_stranger_all_he_needs(document: dict[str, Any]) -> None:
    """What each operation does, what it may answer, and that it needs a token."""
    assert document["security"] == [{"token": []}]
    exempt = [path for path, methods in document["paths"].items() for said in methods.values() if "security" in said]
    assert exempt == ["/metrics"]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    names = []
    for path, methods in document["paths"].items():
        for operation in methods.values():
            names.append(operation["operationId"])
            assert operation["description"].endswith("."), path
            assert operation["tags"], path
            assert {"401", "403", "404", "422", "429", "503"} <= set(operation["responses"]), path
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                [shape] = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
                bounded = {"pattern", "enum", "maximum", "maxLength", "const", "maxItems", "$ref"} & set(shape)
                assert bounded or shape.get("type") == "boolean", (path, parameter)
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z_]+", name) for name in names)
    assert "examples" in document["components"]["schemas"]["NewTask"]
    assert "examples" in document["components"]["schemas"]["HubSummary"]
