"""Keys read from a real HTTP server: rotation, outage, slowness, floods, and what is not a key."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.auth.forge import (
    NOW,
    PrivateKey,
    b64,
    dump,
    ec_key,
    ed_key,
    jwk,
    private_pem,
    public_pem,
    raw_token,
    rsa_key,
    token,
)

from bongsu.auth import InvalidToken, KeysUnavailable, TokenOptions, TokenVerifier
from bongsu.auth.jwks import MAX_KEY_SET_BYTES, MAX_KEYS

TTL, RETRY_DELAY = 3600.0, 10.0


class KeyServer:
    """An identity provider on a loopback port that can misbehave.

    `answer` is the whole response; `asked` the paths of the requests so far. While `gate` is closed, requests
    wait. `flood`: after the answer, go on sending until the other side has had enough.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = b""
        self.gate = asyncio.Event()
        self.gate.set()
        self.requested = asyncio.Event()
        self.flood = False
        self.cut_off = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/certs"

    def serve(self, *keys: object) -> None:
        self.respond(json.dumps({"keys": keys}).encode())

    def respond(self, body: bytes, status: str = "200 OK", *headers: str) -> None:
        head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "\r\n"])
        self.answer = head.encode() + body

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", self._port, ssl=context)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self.gate.set()
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(request.split(b" ")[1].decode())
            self.requested.set()
            await self.gate.wait()
            writer.write(self.answer)
            await writer.drain()
            while self.flood:
                writer.write(b" " * 65_536)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.cut_off.set()
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[KeyServer]:
    key_server = KeyServer()
    key_server.serve(jwk(ec_key(), "one"))
    await key_server.start()
    try:
        yield key_server
    finally:
        await key_server.stop()


@pytest.fixture
async def tokens(server: KeyServer) -> AsyncIterator[TokenVerifier]:
    verifier = make_verifier(server.url)
    yield verifier
    await verifier.aclose()


def make_verifier(url: str, **options: object) -> TokenVerifier:
    return TokenVerifier(
        TokenOptions.model_validate(
            {
                "jwks_public_endpoint": url,
                "jwks_cache_ttl": TTL,
                "jwks_retry_delay": RETRY_DELAY,
                **options,
            }
        )
    )


def good(kid: str = "one", key: PrivateKey | None = None) -> str:
    return token(key or ec_key(), "ES256", kid=kid, sub="42")


# --- which key, which algorithm ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (rsa_key(), "RS256"),
        (rsa_key(), "RS384"),
        (rsa_key(), "RS512"),
        (ec_key("P-256"), "ES256"),
        (ec_key("P-384"), "ES384"),
        (ec_key("P-521"), "ES512"),
        (ed_key(), "EdDSA"),
    ],
)
@pytest.mark.parametrize("says_alg", [True, False])
async def test_keys_of_every_kind_verify_their_tokens(
    server: KeyServer, tokens: TokenVerifier, key: PrivateKey, alg: str, says_alg: bool
) -> None:
    server.serve(jwk(rsa_key("other"), "other"), jwk(key, "k", **({"alg": alg} if says_alg else {})))
    granted = await tokens.verify_connection(token(key, alg, kid="k", sub="42"), now=NOW)
    assert granted.user == "42"


async def test_the_keys_alg_wins_over_the_tokens(server: KeyServer, tokens: TokenVerifier) -> None:
    server.serve(jwk(rsa_key(), "k", alg="RS256"))
    await tokens.verify_connection(token(rsa_key(), "RS256", kid="k"), now=NOW)
    for alg in ("RS384", "RS512", "PS256"):
        with pytest.raises(InvalidToken):
            await tokens.verify_connection(token(rsa_key(), alg, kid="k"), now=NOW)


async def test_keys_that_share_a_kid_are_told_apart_by_their_algorithm(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    server.serve(jwk(rsa_key(), "k"), jwk(ec_key(), "k"))
    await tokens.verify_connection(token(rsa_key(), "RS256", kid="k"), now=NOW)
    await tokens.verify_connection(token(ec_key(), "ES256", kid="k"), now=NOW)


async def test_a_public_key_of_the_set_is_never_taken_for_a_secret(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    server.serve(jwk(rsa_key(), "k"), {"kty": "oct", "k": b64(b"published"), "kid": "o", "alg": "HS256"})
    for kid, secret in (("k", public_pem(rsa_key()).encode()), ("k", b""), ("o", b"published"), ("o", b"")):
        forged = raw_token(b'{"sub":"admin"}', header=dump({"alg": "HS256", "kid": kid}), secret=secret)
        with pytest.raises((InvalidToken, KeysUnavailable)):
            await tokens.verify_connection(forged, now=NOW)


@pytest.mark.parametrize("header", [{}, {"kid": ""}, {"kid": None}])
async def test_a_token_without_kid_is_invalid_and_asks_nobody(
    server: KeyServer, tokens: TokenVerifier, header: dict[str, object]
) -> None:
    with pytest.raises(InvalidToken, match="kid"):
        await tokens.verify_connection(raw_token(b"{}", header=dump({"alg": "ES256", **header})), now=NOW)
    assert server.asked == []


async def test_a_header_that_names_its_own_keys_is_not_listened_to(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    evil = server.url.replace("/certs", "/evil")
    for header in ({"jku": evil}, {"x5u": evil}, {"jwk": jwk(ec_key(name="evil"), "one")}):
        forged = raw_token(b'{"sub":"admin"}', header=dump({"alg": "ES256", "kid": "one", **header}))
        with pytest.raises(InvalidToken):
            await tokens.verify_connection(forged, now=NOW)
    assert server.asked == ["/certs"]


@pytest.mark.parametrize(
    "odd",
    [
        {"kty": "oct", "k": "AAAA", "kid": "odd"},
        {"kty": "PQC", "kid": "odd"},
        {"kid": "odd"},
        {**jwk(ec_key(name="odd"), "odd"), "kid": None},
        {**jwk(ec_key(name="odd"), "odd"), "d": "AAAA"},
        jwk(ec_key(name="odd"), "odd", use="enc"),
        jwk(ec_key(name="odd"), "odd", key_ops=["sign"]),
        jwk(ec_key(name="odd"), "odd", alg="ES384"),
        jwk(ec_key(name="odd"), "odd", alg="HS256"),
        jwk(ec_key(name="odd"), "odd", alg="none"),
        jwk(ec_key("secp256k1"), "odd"),
        jwk(rsa_key(bits=1024), "odd"),
        {"kty": "RSA", "n": "AQAB", "e": "AQ", "kid": "odd"},
        {"kty": "RSA", "n": "%%", "e": "é", "kid": "odd"},
        {"kty": "RSA", "n": 5, "e": 3, "kid": "odd"},
        {"kty": "RSA", "kid": "odd"},
        {"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 32), "y": b64(b"\1" * 32), "kid": "odd"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "odd"},
        {"kty": "OKP", "crv": "X25519", "x": b64(b"\1" * 32), "kid": "odd"},
        {"kty": "OKP", "crv": "Ed448", "x": b64(b"\1" * 57), "kid": "odd"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "odd"},
        "not even an object",
        None,
    ],
)
async def test_an_odd_key_is_left_out_and_the_others_still_work(
    server: KeyServer, tokens: TokenVerifier, odd: object
) -> None:
    server.serve(odd, jwk(ec_key(), "one"))
    assert (await tokens.verify_connection(good(), now=NOW)).user == "42"
    with pytest.raises(KeysUnavailable):  # unknown, and the set was read just now
        await tokens.verify_connection(good("odd", ec_key(name="odd")), now=NOW)


# --- reading: cached, once, bounded -----------------------------------------------------------------------


async def test_the_key_set_is_read_once_for_many_tokens(server: KeyServer, tokens: TokenVerifier) -> None:
    for second in range(100):
        await tokens.verify_connection(good(), now=NOW + second)
    assert len(server.asked) == 1


async def test_many_clients_at_once_wait_for_one_read_even_when_the_first_leaves(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    server.gate.clear()
    first = asyncio.create_task(tokens.verify_connection(good(), now=NOW))
    await server.requested.wait()
    others = [asyncio.create_task(tokens.verify_connection(good(), now=NOW)) for _ in range(50)]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    server.gate.set()
    assert [granted.user for granted in await asyncio.gather(*others)] == ["42"] * 50
    assert len(server.asked) == 1


async def test_a_new_key_is_found_by_one_more_read_and_a_removed_one_is_refused(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    await tokens.verify_connection(good(), now=NOW)
    server.serve(jwk(ec_key(name="two"), "two"))
    later = NOW + RETRY_DELAY
    await tokens.verify_connection(good("two", ec_key(name="two")), now=later)
    with pytest.raises(InvalidToken):
        await tokens.verify_connection(good(), now=later + RETRY_DELAY)
    assert len(server.asked) == 3


async def test_a_key_behind_the_same_kid_changes_when_the_cache_ends(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    await tokens.verify_connection(good(), now=NOW)
    server.serve(jwk(ec_key(name="two"), "one"))
    with pytest.raises(InvalidToken):
        await tokens.verify_connection(good("one", ec_key(name="two")), now=NOW + TTL - 1)
    await tokens.verify_connection(good("one", ec_key(name="two")), now=NOW + TTL)
    with pytest.raises(InvalidToken):
        await tokens.verify_connection(good(), now=NOW + TTL)


async def test_a_storm_of_unknown_kids_costs_one_read_per_retry_delay(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    await tokens.verify_connection(good(), now=NOW)
    for second in range(30):
        storm = [tokens.verify_connection(good(f"{second}-{i}"), now=NOW + second) for i in range(20)]
        outcomes = await asyncio.gather(*storm, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {InvalidToken, KeysUnavailable}
        assert (await tokens.verify_connection(good(), now=NOW + second)).user == "42"
    assert len(server.asked) == 3


async def test_an_unknown_kid_is_final_only_after_a_read_that_began_later(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    """A storm of made-up kids during a key rotation must not make honest new tokens invalid for good."""
    new = good("two", ec_key(name="two"))
    with pytest.raises(InvalidToken):
        await tokens.verify_connection(good("made-up"), now=NOW)
    server.serve(jwk(ec_key(), "one"), jwk(ec_key(name="two"), "two"))
    with pytest.raises(KeysUnavailable):
        await tokens.verify_connection(new, now=NOW + 1)
    assert (await tokens.verify_connection(new, now=NOW + RETRY_DELAY)).user == "42"


async def test_a_read_that_was_under_way_already_condemns_nobody(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    server.gate.clear()
    first = asyncio.create_task(tokens.verify_connection(good("made-up"), now=NOW))
    await server.requested.wait()
    second = asyncio.create_task(tokens.verify_connection(good("maybe-new"), now=NOW))
    await asyncio.sleep(0)  # lets it join the read
    server.gate.set()
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InvalidToken, KeysUnavailable]
    assert len(server.asked) == 1


async def test_a_clock_that_was_set_back_does_not_keep_old_keys(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    await tokens.verify_connection(good(), now=NOW)
    server.serve()
    with pytest.raises(InvalidToken):
        await tokens.verify_connection(good(), now=NOW - 10 * TTL)


# --- trouble ----------------------------------------------------------------------------------------------


async def test_an_outage_shorter_than_the_cache_is_not_noticed_and_a_longer_one_is_temporary(
    server: KeyServer, tokens: TokenVerifier
) -> None:
    await tokens.verify_connection(good(), now=NOW)
    await server.stop()
    for age in (1, TTL - 1, TTL, TTL + RETRY_DELAY, 2 * TTL - 1):
        assert (await tokens.verify_connection(good(), now=NOW + age)).user == "42"
    with pytest.raises(KeysUnavailable):
        await tokens.verify_connection(good(), now=NOW + 2 * TTL)
    await server.start()
    with pytest.raises(KeysUnavailable):  # not asked again so soon
        await tokens.verify_connection(good(), now=NOW + 2 * TTL + 1)
    assert (await tokens.verify_connection(good(), now=NOW + 2 * TTL + RETRY_DELAY)).user == "42"


async def test_nobody_is_refused_for_good_while_the_first_read_fails(server: KeyServer) -> None:
    await server.stop()
    tokens = make_verifier(server.url)
    with pytest.raises(KeysUnavailable):
        await tokens.verify_connection(good(), now=NOW)
    await server.start()
    assert (await tokens.verify_connection(good(), now=NOW + RETRY_DELAY)).user == "42"


KEYS = dump({"keys": [jwk(ec_key(), "one")]})


@pytest.mark.parametrize(
    ("body", "status", "headers"),
    [
        (KEYS, "500 Internal Server Error", []),
        (KEYS, "404 Not Found", []),
        (KEYS, "204 No Content", []),
        (KEYS, "302 Found", ["location: /elsewhere"]),
        (gzip.compress(KEYS), "200 OK", ["content-encoding: gzip"]),
        (b"<html>", "200 OK", []),
        (b"", "200 OK", []),
        (b"[]", "200 OK", []),
        (b'{"keys":{}}', "200 OK", []),
        (b'{"\xff":1}', "200 OK", []),
        (b'{"keys":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "200 OK", []),
        (b'{"keys":[' + b"{}," * MAX_KEYS + b"{}]}", "200 OK", []),
        (KEYS + b" " * MAX_KEY_SET_BYTES, "200 OK", []),
    ],
)
async def test_an_answer_that_is_no_key_set_is_temporary_trouble(
    server: KeyServer, tokens: TokenVerifier, body: bytes, status: str, headers: list[str]
) -> None:
    server.respond(body, status, *headers)
    with pytest.raises(KeysUnavailable):
        await tokens.verify_connection(good(), now=NOW)
    assert server.asked == ["/certs"]


async def test_an_answer_without_end_is_cut_off(server: KeyServer, tokens: TokenVerifier) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    server.flood = True
    with pytest.raises(KeysUnavailable):
        await tokens.verify_connection(good(), now=NOW)
    await asyncio.wait_for(server.cut_off.wait(), 10)


async def test_a_server_that_does_not_answer_holds_nobody_longer_than_the_timeout(server: KeyServer) -> None:
    server.gate.clear()
    tokens = make_verifier(server.url, jwks_timeout=0.2)
    outcomes = await asyncio.gather(
        *(tokens.verify_connection(good(), now=NOW) for _ in range(20)), return_exceptions=True
    )
    assert {type(outcome) for outcome in outcomes} == {KeysUnavailable}
    assert len(server.asked) == 1


async def test_closing_ends_a_read_and_frees_those_who_wait(server: KeyServer) -> None:
    server.gate.clear()
    tokens = make_verifier(server.url, jwks_timeout=600)
    waiting = asyncio.create_task(tokens.verify_connection(good(), now=NOW))
    await server.requested.wait()
    await asyncio.wait_for(tokens.aclose(), 10)
    with pytest.raises(KeysUnavailable):
        await waiting
    assert [task for task in asyncio.all_tasks() if task.get_name() == "read key set"] == []


# --- where the set is -------------------------------------------------------------------------------------


async def test_the_issuer_picks_the_key_set_among_the_listed_ones_only(server: KeyServer) -> None:
    tokens = make_verifier(
        server.url.replace("/certs", "/{{realm}}/certs"),
        issuer_regex=r"(?i)https://id\.example/(?P<realm>acme|globex)(?:/.*)?",
    )
    for realm in ("acme", "globex", "acme"):
        made = token(ec_key(), "ES256", kid="one", iss=f"https://id.example/{realm}")
        await tokens.verify_connection(made, now=NOW)
    assert server.asked == ["/acme/certs", "/globex/certs"]
    for issuer in (
        "https://id.example/evil",
        "https://id.example/ACME",
        "https://id.example/acme/../evil/x\n",
    ):
        with pytest.raises(InvalidToken):
            await tokens.verify_connection(token(ec_key(), "ES256", kid="one", iss=issuer), now=NOW)
    assert server.asked == ["/acme/certs", "/globex/certs"]


async def test_https_is_believed_only_with_a_certificate_that_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "certificate.pem"
    private = tmp_path / "key.pem"
    certificate.write_bytes(self_signed("127.0.0.1"))
    private.write_text(private_pem(ec_key(name="tls")))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, private)
    server = KeyServer()
    server.serve(jwk(ec_key(), "one"))
    await server.start(context)
    url = server.url.replace("http:", "https:")
    try:
        with pytest.raises(KeysUnavailable):
            await make_verifier(url).verify_connection(good(), now=NOW)
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert (await make_verifier(url).verify_connection(good(), now=NOW)).user == "42"
    finally:
        await server.stop()


def self_signed(address: str) -> bytes:
    key = ec_key(name="tls")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
    today = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False)
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )
