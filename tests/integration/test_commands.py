"""The shipped commands against the shipped server, each as a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tests.faults import Fault, FaultProxy
from tests.servers import BONGSU, RunningServer, free_port

from bongsu.cli.unfinished import Unfinished, fingerprint

StartServer = Callable[..., RunningServer]
HMAC_SECRET = "0123456789abcdef0123456789abcdef"
_DEADLINE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for the tests that leave it as it was: starting it takes longer than most of them."""
    shared = RunningServer(tmp_path_factory.mktemp("server"), {}, dev=True)
    shared.start()
    try:
        yield shared
    finally:
        shared.stop()


def environment(server: RunningServer | None, **more: str) -> dict[str, str]:
    """The environment of a client command: none of our variables but those given here."""
    # Where nothing is remembered that was not remembered for a test.
    more.setdefault("XDG_STATE_HOME", os.devnull)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BONGSU_")}
    ours = {} if server is None else {"BONGSU_URL": server.url, "BONGSU_API_KEY": server.api_key}
    return {**inherited, **ours, **more}


async def run(*arguments: str, env: dict[str, str], input: bytes = b"") -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    process = await asyncio.create_subprocess_exec(
        BONGSU, *arguments, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(_DEADLINE):
        out, err = await process.communicate(input)
    assert process.returncode is not None
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def subscriber(*arguments: str, env: dict[str, str]) -> AsyncIterator[Process]:
    """`bongsu subscribe`, from its first subscription on; killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        BONGSU, "subscribe", *arguments, env=env, stdout=PIPE, stderr=PIPE
    )
    try:
        await said(process, "subscribed to")
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def said(process: Process, words: str) -> str:
    """The next line on standard error that has `words`."""
    assert process.stderr is not None
    async with asyncio.timeout(_DEADLINE):
        while line := (await process.stderr.readline()).decode():
            if words in line:
                return line
    raise AssertionError(f"the command ended without saying “{words}”")


async def printed(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(_DEADLINE):
        return (await process.stdout.readline()).decode()


def read_to_end(terminal: int) -> str:
    """What is written to a pseudo-terminal until its other side closes, which Linux tells as EIO."""
    written = b""
    with suppress(OSError):
        while data := os.read(terminal, 65536):
            written += data
    return written.decode()


async def test_what_publish_sends_subscribe_prints_byte_for_byte(server: RunningServer) -> None:
    """setup: one server, one subscriber. do: publish by argument and by standard input.
    expect: the same bytes, one message a line, and an end after the count."""
    env = environment(server)
    exact = '{"b":1.0,"a":"\\u00e9봉수","n":12345678901234567890,"a":[]}'
    async with subscriber("broadcast", "--count", "3", env=env) as process:
        assert (await run("publish", "broadcast", exact, env=env))[0] == 0
        code, out, err = await run("publish", "broadcast", "-", "--json", env=env, input=b'"two"\n')
        assert (code, err) == (0, "")
        assert isinstance(json.loads(out), dict)
        assert (await run("publish", "broadcast", '"line\\nbreak"', env=env))[0] == 0
        assert await printed(process) == f"{exact}\n"
        assert await printed(process) == '"two"\n'
        assert await printed(process) == '"line\\nbreak"\n'
        assert await process.wait() == 0


async def test_subscribe_prints_json_lines_for_scripts(server: RunningServer) -> None:
    env = environment(server)
    async with subscriber("room", "--json", "--count", "1", env=env) as process:
        await run("publish", "room", '{"a":1}', env=env)
        assert json.loads(await printed(process)) == {"channel": "room", "message": '{"a":1}'}
        assert await process.wait() == 0


async def test_subscribe_connects_again_after_the_server_was_killed_and_says_so(
    bongsu_server: StartServer,
) -> None:
    server = bongsu_server()
    env = environment(server)
    async with subscriber("broadcast", "--count", "1", env=env) as process:
        server.kill()
        assert "connection closed" in await said(process, "connecting again in")
        await asyncio.to_thread(server.start)
        await said(process, "subscribed to")
        await run("publish", "broadcast", "1", env=env)
        assert await printed(process) == "1\n"


async def test_ctrl_c_ends_subscribe_with_130_and_no_traceback(server: RunningServer) -> None:
    async with subscriber("broadcast", env=environment(server)) as process:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(_DEADLINE):
            out, err = await process.communicate()
        assert (process.returncode, out, err) == (130, b"", b"")


async def test_publish_is_refused_in_clear_words(server: RunningServer) -> None:
    keyless = environment(None, BONGSU_URL=server.url)
    code, _, err = await run("publish", "broadcast", "1", env=keyless)
    assert code == 1
    assert "an API key is needed" in err
    code, _, err = await run("publish", "broadcast", "1", "--api-key", "wrong", env=keyless)
    assert code == 1
    assert "does not accept this API key" in err
    assert "wrong" not in err
    code, _, err = await run("publish", "nowhere:x", "1", env=environment(server))
    assert code == 1
    assert "not published" in err
    assert "102" in err


async def test_subscribing_to_a_namespace_that_does_not_exist_ends_with_1(server: RunningServer) -> None:
    code, out, err = await run("subscribe", "nowhere:x", env=environment(server))
    assert (code, out) == (1, "")
    assert "unknown_channel" in err


@pytest.mark.parametrize("command", [("publish", "x", "1"), ("upload", str(BONGSU)), ("subscribe", "x")])
async def test_ctrl_c_ends_a_command_that_waits_for_an_answer(command: tuple[str, ...]) -> None:
    """setup: a server that accepts and says nothing. do: Ctrl-C. expect: 130 and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.setblocking(False)
        env = environment(None, BONGSU_URL=f"http://127.0.0.1:{mute.getsockname()[1]}")
        process = await asyncio.create_subprocess_exec(BONGSU, *command, env=env, stdout=PIPE, stderr=PIPE)
        async with asyncio.timeout(_DEADLINE):
            connection, _ = await asyncio.get_running_loop().sock_accept(mute)
            with connection:
                process.send_signal(signal.SIGINT)
                out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err


@pytest.mark.parametrize("command", [("publish", "x", "1"), ("subscribe", "x"), ("upload", str(BONGSU))])
async def test_a_server_that_is_not_there_ends_a_command_with_2_and_one_sentence(
    command: tuple[str, ...],
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, out, err = await run(*command, "--url", url, env=environment(None))
    assert (code, out) == (2, "")
    assert url in err
    assert "connection refused" in err
    assert err.count("\n") == 1


async def test_a_token_of_the_token_command_opens_a_server_that_is_closed_without(
    bongsu_server: StartServer,
) -> None:
    """Outside --dev a socket needs a token, and the token is never in a log."""
    server = bongsu_server(dev=False, BONGSU_TOKEN__HMAC_SECRET=HMAC_SECRET)
    env = environment(server)
    code, _, err = await run("subscribe", "broadcast", env=env)
    assert code == 1
    assert "BONGSU_ACCESS_TOKEN" in err
    _, token, _ = await run("token", "42", env=environment(None, BONGSU_TOKEN__HMAC_SECRET=HMAC_SECRET))
    with_token = env | {"BONGSU_ACCESS_TOKEN": token.strip()}
    async with subscriber("broadcast", "--count", "1", env=with_token) as process:
        await run("publish", "broadcast", "1", env=env)
        assert await printed(process) == "1\n"
    server.stop()
    assert token.strip() not in server.log()
    assert server.api_key not in server.log()


async def test_serve_in_development_prints_the_key_it_made_and_the_key_works(
    bongsu_server: StartServer,
) -> None:
    server = bongsu_server(BONGSU_API_KEY="")
    made = re.search(r"API key of this run: (\S+)", server.log())
    assert made is not None
    env = environment(None, BONGSU_URL=server.url, BONGSU_API_KEY=made[1])
    assert (await run("publish", "broadcast", "1", env=env))[0] == 0
    server.stop()
    assert server.log().count(made[1]) == 1


async def test_serve_on_a_port_that_is_taken_says_so_at_once_and_touches_nothing(
    server: RunningServer, tmp_path: Path
) -> None:
    port = urlsplit(server.url).port
    database = tmp_path / "untouched.db"
    env = environment(server, BONGSU_DATABASE_URL=f"sqlite+aiosqlite:///{database}")
    code, out, err = await run("serve", "--dev", "--port", str(port), env=env)
    assert (code, out) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another port" in err
    assert not database.exists()


async def test_probes_may_ask_with_head(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        for path in ("/livez", "/readyz", "/status", "/metrics"):
            asked, got = await client.head(path), await client.get(path)
            assert (asked.status_code, asked.content) == (got.status_code, b"")
            assert asked.headers["content-type"] == got.headers["content-type"]


async def test_upload_waits_until_each_file_is_stored_and_prints_its_hash(
    server: RunningServer, tmp_path: Path
) -> None:
    one, two = tmp_path / "하나.bin", tmp_path / "two.bin"
    one.write_bytes(os.urandom(3 * 2**20 + 1))
    two.write_bytes(b"")
    code, out, err = await run("upload", str(one), str(two), env=environment(server))
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.split()[1:] == [
        "stored",
        str(3 * 2**20 + 1),
        hashlib.sha256(one.read_bytes()).hexdigest(),
        str(one),
    ]
    assert second.split()[1:4] == ["stored", "0", hashlib.sha256(b"").hexdigest()]
    async with httpx.AsyncClient(base_url=server.url) as client:
        content = await client.get(f"/uploads/{first.split()[0]}/content")
    assert content.content == one.read_bytes()


async def test_upload_prints_records_for_scripts_and_need_not_wait(
    server: RunningServer, tmp_path: Path
) -> None:
    env = environment(server)
    file = tmp_path / "a.txt"
    file.write_text("hello")
    code, out, _ = await run("upload", str(file), "--json", env=env)
    record = json.loads(out)
    assert (code, record["state"], record["filename"], record["size"]) == (0, "stored", "a.txt", 5)
    code, out, _ = await run("upload", str(file), "--json", "--no-wait", env=env)
    assert code == 0
    assert json.loads(out)["id"] != record["id"]


async def test_upload_in_a_terminal_shows_progress_there_and_results_on_standard_output(
    server: RunningServer, tmp_path: Path
) -> None:
    """`bongsu upload film.mp4 > result` in a terminal: the bar on the screen, the result in the file."""
    file = tmp_path / "a.txt"
    file.write_text("hello")
    terminal, child_end = os.openpty()
    process = await asyncio.create_subprocess_exec(
        BONGSU,
        "upload",
        str(file),
        env=environment(server, TERM="xterm"),
        stdout=PIPE,
        stderr=child_end,
    )
    os.close(child_end)
    shown = asyncio.create_task(asyncio.to_thread(read_to_end, terminal))
    async with asyncio.timeout(_DEADLINE):
        out, _ = await process.communicate()
        screen = await shown
    os.close(terminal)
    assert out.split()[1] == b"stored"
    assert "a.txt" in screen
    assert "5/5 bytes" in screen


async def test_a_file_that_is_refused_does_not_stop_the_others(
    bongsu_server: StartServer, tmp_path: Path
) -> None:
    env = environment(bongsu_server(BONGSU_UPLOAD__MAX_SIZE="1KiB"))
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    large.write_bytes(bytes(5 * 2**20))
    small.write_bytes(b"small")
    code, out, err = await run("upload", str(large), str(small), env=env)
    assert code == 1
    assert "upload_too_large" in err
    assert out.split()[1] == "stored"
    assert out.count("\n") == 1


def test_uploading_a_large_file_takes_little_memory(server: RunningServer, tmp_path: Path) -> None:
    """A file larger than the bound, which a client that reads it whole would exceed."""
    file = tmp_path / "large.bin"
    with file.open("wb") as out:
        out.truncate(256 * 2**20)
    env = environment(server)
    arguments = ["upload", str(file), "--no-wait"]
    done = subprocess.run(
        [sys.executable, "-c", _TELL_PEAK, *arguments], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) * 1024 < 192 * 2**20


# The program's own peak, in KiB. `ru_maxrss` would count the memory of this test process, too, whose copy
# the child is until it executes the program.
_TELL_PEAK = """
import re
from bongsu.cli import main
try:
    main()
finally:
    print(re.search("VmHWM:[^0-9]*([0-9]+)", open("/proc/self/status").read())[1])
"""


@contextmanager
def stalling(server: RunningServer) -> Iterator[FaultProxy]:
    """A line to `server` whose first connection stands still after 16 MiB."""
    with FaultProxy(server.port) as line:
        line.break_next(Fault("stall", after=16 * 2**20))
        yield line


async def stalled(line: FaultProxy) -> None:
    async with asyncio.timeout(_DEADLINE):
        while line.happened == 0:  # noqa: ASYNC110  # the proxy lives in a thread and tells nobody
            await asyncio.sleep(0.01)


async def test_an_upload_that_is_interrupted_goes_on_where_it_was(
    bongsu_server: StartServer, tmp_path: Path
) -> None:
    """setup: an upload that hangs in the middle. do: Ctrl-C; the same again. expect: one upload, whole."""
    server = bongsu_server()
    file = tmp_path / "large.bin"
    file.write_bytes(os.urandom(24 * 2**20))
    with stalling(server) as line:
        env = environment(server, BONGSU_URL=line.url, XDG_STATE_HOME=str(tmp_path / "state"))
        process = await asyncio.create_subprocess_exec(
            BONGSU, "upload", str(file), env=env, stdout=PIPE, stderr=PIPE
        )
        await stalled(line)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(_DEADLINE):
            out, err = await process.communicate()
        assert (process.returncode, out) == (130, b"")
        assert b"goes on where it was" in err
        carried = line.carried
        code, printed, err_again = await run("upload", str(file), env=env)
        assert (code, err_again) == (0, "")
        # The last third and what had not been committed; the whole file would be 24 MiB.
        assert line.carried - carried < 17 * 2**20
    assert printed.split()[1:4] == ["stored", str(24 * 2**20), hashlib.sha256(file.read_bytes()).hexdigest()]
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert len((await client.get("/uploads")).json()["uploads"]) == 1


async def test_an_upload_whose_server_dies_goes_on_by_itself(
    bongsu_server: StartServer, tmp_path: Path
) -> None:
    server = bongsu_server()
    file = tmp_path / "large.bin"
    file.write_bytes(os.urandom(24 * 2**20))
    with stalling(server) as line:
        env = environment(server, BONGSU_URL=line.url)
        uploading = asyncio.create_task(run("upload", str(file), env=env))
        await stalled(line)
        await asyncio.to_thread(server.kill)
        line.break_open("reset")
        await asyncio.to_thread(server.start)
        code, out, err = await uploading
    assert (code, err) == (0, "")
    assert out.split()[1:4] == ["stored", str(24 * 2**20), hashlib.sha256(file.read_bytes()).hexdigest()]


async def test_an_upload_is_begun_when_the_server_takes_it_again(
    bongsu_server: StartServer, tmp_path: Path
) -> None:
    """Bytes were sent for a minute again and again; a 503 at the creation ended the command at once.

    setup: a server whose storage is away. do: upload; bring it back behind the first 503. expect: stored.
    """
    files = tmp_path / "storage"
    server = bongsu_server(BONGSU_STORAGE_URL=f"file://{files}")
    away = files.rename(tmp_path / "away")
    (file := tmp_path / "empty.txt").touch()
    log = server.directory / "serve.log"
    uploading = asyncio.create_task(run("upload", str(file), env=environment(server)))
    async with asyncio.timeout(_DEADLINE):
        while "the storage does not work" not in log.read_text() and not uploading.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    away.rename(files)
    code, out, err = await uploading
    assert (code, err) == (0, "")
    assert out.split()[1:3] == ["stored", "0"]


async def test_an_upload_that_its_server_has_forgotten_begins_anew(
    server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("hello")
    remembered = Unfinished(tmp_path / "state" / "bongsu" / "uploads")
    # As the command sees the address: with the slash that its client adds.
    remembered.keep(fingerprint(f"{server.url}/", file), "/files/" + "0" * 32)
    code, out, err = await run(
        "upload", str(file), env=environment(server, XDG_STATE_HOME=str(tmp_path / "state"))
    )
    assert (code, err) == (0, "")
    assert out.split()[1] == "stored"


async def test_migrate_hides_the_password_of_a_database_that_is_not_there() -> None:
    url = f"postgresql+asyncpg://user:hunter2@127.0.0.1:{free_port()}/db"
    code, out, err = await run("migrate", env=environment(None, BONGSU_DATABASE_URL=url))
    assert (code, out) == (2, "")
    assert "the database cannot be reached" in err
    assert "hunter2" not in err


async def test_the_doctor_finds_a_healthy_server_healthy(server: RunningServer) -> None:
    code, out, err = await run("doctor", "--json", env=environment(server))
    findings = {finding["check"]: finding for finding in map(json.loads, out.splitlines())}
    assert (code, err) == (0, ""), out
    assert findings.pop("mode")["verdict"] == "warning"  # development
    assert {finding["verdict"] for finding in findings.values()} == {"ok"}, out
    assert {"websocket", "http stream", "delivery", "control", "uploads"} <= findings.keys()


async def test_the_doctor_says_what_is_wrong_and_what_is_not_reached(server: RunningServer) -> None:
    wrong = environment(server, BONGSU_API_KEY="not the key of this server", BONGSU_ACCESS_TOKEN="no token")
    code, out, _ = await run("doctor", env=wrong)
    assert code == 1
    assert "the API key is not accepted" in out
    assert "invalid token" in out
    code, out, _ = await run("doctor", "--url", f"http://127.0.0.1:{free_port()}", env=environment(None))
    assert code == 2
    assert "connection refused" in out
