"""The page's routes alone: what they answer, and that they work below any prefix."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from fastapi import FastAPI

from bongsu.web import web_router

REFERENCE = re.compile(r'\b(?:src|href)="([^"]+)"')
IMPORT = re.compile(r'^import .* from "([^"]+)";$', re.MULTILINE)


def client(*, prefix: str = "", dev: bool = True, replica: str = "namsan-1") -> httpx.AsyncClient:
    """A client of an app that has the page mounted below `prefix`."""
    inner = FastAPI(docs_url=None, redoc_url=None)
    inner.include_router(web_router(title="Bongsu", version="9.8.7", replica=replica, dev=dev))
    outer = inner
    if prefix:
        outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        outer.mount(prefix, inner)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=outer), base_url="http://test")


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.js", "/static/beacon.svg"])
async def test_every_answer_forbids_inline_code_foreign_origins_framing_and_sniffing(path: str) -> None:
    async with client() as http:
        answer = await http.get(path)
    assert answer.status_code == 200
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["connect-src"] == "'self' ws: wss:"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["base-uri"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_the_pages_contain_no_inline_script_style_or_handler(path: str) -> None:
    async with client() as http:
        html = (await http.get(path)).text
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
    assert all(script.endswith("</script>") for script in re.findall(r"<script[^>]*>.{0,9}", html, re.DOTALL))


@pytest.mark.parametrize("prefix", ["", "/realtime", "/a/b"])
@pytest.mark.parametrize("page", ["/", "/docs"])
async def test_every_file_a_page_needs_is_found_below_the_same_prefix(prefix: str, page: str) -> None:
    """Setup: the app mounted below a prefix. Do: follow every reference, and every import of the scripts.
    Expect: all inside the prefix and all there, except the routes that other parts answer."""
    elsewhere = {"status", "openapi.json"}
    async with client(prefix=prefix) as http:
        document = await http.get(f"{prefix}{page}")
        todo = {
            urljoin(str(document.url), found) for found in REFERENCE.findall(document.text) if found[0] != "#"
        }
        seen: set[str] = set()
        while todo:
            url = todo.pop()
            seen.add(url)
            path = urlsplit(url).path
            assert path.startswith(f"{prefix}/"), url
            if path.removeprefix(f"{prefix}/") in elsewhere:
                continue
            answer = await http.get(url)
            assert answer.status_code == 200, url
            if path.endswith(".js"):
                todo |= {urljoin(url, found) for found in IMPORT.findall(answer.text)} - seen
    assert any(url.endswith(".css") for url in seen)
    assert any(url.endswith(".js") for url in seen)


async def test_the_scripts_name_no_absolute_address_of_ours() -> None:
    """An address that begins with a slash would leave the prefix the app is mounted below."""
    async with client() as http:
        page = (await http.get("/static/page.js")).text
        names = {found.removeprefix("./") for found in IMPORT.findall(page)} | {
            "page.js",
            "http.js",
            "docs.js",
        }
        for name in names:
            script = (await http.get(f"/static/{name}")).text
            code = re.sub(r"^\s*(//|\*|/\*).*$", "", script, flags=re.MULTILINE)
            assert not re.search(r"""["'`]/[a-z]""", code), name


async def test_scripts_and_styles_have_types_that_nosniff_lets_through() -> None:
    async with client() as http:
        script = (await http.get("/static/page.js")).headers["content-type"]
        style = (await http.get("/static/page.css")).headers["content-type"]
        icon = (await http.get("/static/beacon.svg")).headers["content-type"]
    assert script.split(";")[0] in {"text/javascript", "application/javascript"}
    assert style.split(";")[0] == "text/css"
    assert icon.split(";")[0] == "image/svg+xml"


async def test_an_unchanged_file_is_not_sent_again() -> None:
    async with client() as http:
        first = await http.get("/static/swagger-ui-bundle.js")
        second = await http.get(
            "/static/swagger-ui-bundle.js", headers={"if-none-match": first.headers["etag"]}
        )
    assert first.headers["cache-control"] == "no-cache"
    assert (second.status_code, second.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2froutes.py", "..%2f..%2fsettings%2fmodel.py", "%2fetc%2fpasswd"]
)
async def test_nothing_outside_the_static_files_is_served(name: str) -> None:
    async with client() as http:
        answer = await http.get(f"/static/{name}")
    assert answer.status_code == 404


async def test_only_get_and_head_are_answered() -> None:
    async with client() as http:
        assert (await http.post("/")).status_code == 405
        assert (await http.post("/static/page.js")).status_code == 405
        head = await http.head("/")
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(("dev", "access"), [(True, "anonymous"), (False, "token")])
async def test_the_page_knows_whether_a_token_is_needed(dev: bool, access: str) -> None:
    async with client(dev=dev) as http:
        assert f'data-access="{access}"' in (await http.get("/")).text


async def test_the_page_names_its_replica_and_version_escaped() -> None:
    async with client(replica='a"<b>&c') as http:
        html = (await http.get("/")).text
    assert "a&quot;&lt;b&gt;&amp;c" in html
    assert "<b>&c" not in html
    assert "9.8.7" in html


async def test_the_pages_are_not_operations_of_the_api() -> None:
    async with client() as http:
        assert (await http.get("/openapi.json")).json()["paths"] == {}


async def test_swagger_ui_is_one_that_renders_openapi_3_1() -> None:
    """FastAPI writes OpenAPI 3.1, which Swagger UI renders from 5.0 on; 4.15 showed an error instead."""
    async with client() as http:
        bundle = (await http.get("/static/swagger-ui-bundle.js")).text
        document = (await http.get("/openapi.json")).json()
    version = re.search(r'PACKAGE_VERSION:"(\d+)\.', bundle)
    assert version is not None
    assert int(version[1]) >= 5
    assert document["openapi"].startswith("3.1")
