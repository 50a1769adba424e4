"""Whatever goes wrong in an endpoint leaves as a problem document."""

from __future__ import annotations

import logging
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI, Query
from starlette.exceptions import HTTPException

from bongsu.api.errors import install_error_handlers
from bongsu.db.session import DatabaseUnavailable
from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.uploads.stores import ObjectMissing, StoreFull, StoreUnavailable

FAULTS: dict[str, Exception] = {
    "problem": Problem(problems.DRAINING, "Elsewhere, please.", retry_after=7),
    "database": DatabaseUnavailable("ConnectionRefusedError: secret-host"),
    "full": StoreFull("secret-disk"),
    "store": StoreUnavailable("secret-disk"),
    "missing": ObjectMissing("secret-disk"),
    "teapot": HTTPException(418, headers={"X-Kind": "oolong"}),
    "unexpected": RuntimeError("secret-value"),
}


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()
    install_error_handlers(app)

    @app.get("/fail/{fault}")
    async def fail(fault: str) -> None:
        raise FAULTS[fault]

    @app.get("/validated")
    async def validated(limit: Annotated[int, Query(le=10)]) -> int:
        return limit

    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://test"
    )


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/fail/problem", 503, "draining"),
        ("/fail/database", 503, "database_unavailable"),
        ("/fail/full", 507, "disk_full"),
        ("/fail/store", 503, "storage_unavailable"),
        ("/fail/missing", 503, "storage_unavailable"),
        ("/fail/teapot", 418, "http_418"),
        ("/fail/unexpected", 500, "internal"),
        ("/nowhere", 404, "not_found"),
        ("/validated?limit=11", 422, "validation"),
    ],
)
async def test_an_error_is_a_problem_with_a_stable_code_and_no_secret(
    client: httpx.AsyncClient, path: str, status: int, code: str
) -> None:
    response = await client.get(path)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    document = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["title"]
    assert "secret" not in response.text
    assert "Traceback" not in response.text


async def test_what_may_be_tried_again_says_when(client: httpx.AsyncClient) -> None:
    assert (await client.get("/fail/problem")).headers["retry-after"] == "7"
    assert (await client.get("/fail/full")).headers["retry-after"] == "60"
    assert int((await client.get("/fail/database")).headers["retry-after"]) > 0
    assert "retry-after" not in (await client.get("/fail/teapot")).headers


async def test_a_wrong_method_names_the_right_ones(client: httpx.AsyncClient) -> None:
    response = await client.post("/validated")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET"


async def test_headers_of_the_frameworks_errors_are_kept(client: httpx.AsyncClient) -> None:
    assert (await client.get("/fail/teapot")).headers["x-kind"] == "oolong"


async def test_a_refused_parameter_is_named_and_its_value_is_not_repeated(client: httpx.AsyncClient) -> None:
    response = await client.get("/validated", params={"limit": "secret-token"})
    assert response.json()["errors"][0]["in"] == "query.limit"
    assert "secret-token" not in response.text


async def test_an_unexpected_error_is_left_to_the_server_to_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Starlette raises it again behind the response; logged here too, it would be there twice."""
    with caplog.at_level(logging.DEBUG, logger="bongsu"):
        await client.get("/fail/unexpected")
    assert caplog.records == []
