"""The server: who is let in, what is answered, and what is refused."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from echofed.client.ingest.review.answers import Review
from echofed.client.ingest.review.case import Decision
from echofed.client.ingest.review.png import grey_png, smaller
from echofed.client.ingest.review.queue import cases, decide, decided, undoable
from echofed.client.ingest.review.server import MAX_BODY_BYTES, ReviewServer
from echofed.protocol.errors import PortInUseError
from tests.client.ingest.review.review_cases import WRITTEN, a_case, accepting, frames_for, put

BOX = {"top": 1, "left": 2, "bottom": 30, "right": 40}


class Browser:
    """What a browser sends, and what anybody else might."""

    def __init__(self, server: ReviewServer) -> None:
        self.server, self.host = server, f"127.0.0.1:{server.server_port}"
        self.page = f"/review/{server.page}/"
        self.cookie = f"echofed-review={server.cookie}"

    def ask(self, method: str, path: str, body: bytes | None = None, **changes: str | None) -> tuple[int, bytes, Any]:
        """Return status, content and headers; `changes` replaces headers (by _ for -), None leaves one out."""
        headers: dict[str, str | None] = {"Host": self.host, "Cookie": self.cookie}
        if method == "POST":
            headers |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if body is not None:
                headers.setdefault("Content-Length", str(len(body)))
            for name, value in headers.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def get(self, inside: str, **changes: str | None) -> tuple[int, bytes, Any]:
        return self.ask("GET", self.page + inside, **changes)

    def post(self, inside: str, content: object, **changes: str | None) -> tuple[int, Any]:
        status, answer, _ = self.ask("POST", self.page + inside, json.dumps(content).encode(), **changes)
        return status, json.loads(answer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A queue with two cases: a clip and a still."""
    put(tmp_path / "review", a_case(0, frames=3))
    put(tmp_path / "review", a_case(1, height=300, width=700))
    return tmp_path / "review"


def serving(review: Review) -> Iterator[Browser]:
    """Serve while a test runs."""
    with ReviewServer(review) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Browser(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def browser(folder: Path) -> Iterator[Browser]:
    """A browser that was let in."""
    yield from serving(Review(folder))


def decision(number: int = 0, **changes: Any) -> dict[str, Any]:
    """What the page sends."""
    known = {"instance": f"INSTANCE{number:04d}", "decision": "accept", "boxes": [BOX], "remember": False}
    return {**known, "by": "Dr A. Martin", **changes}


def test_the_address_opens_once(browser: Browser) -> None:
    path = browser.server.url.removeprefix(f"http://{browser.host}")
    status, content, headers = browser.ask("GET", path, Cookie=None)
    assert (status, content, headers["Location"]) == (303, b"", browser.page)
    cookies = headers.get_all("Set-Cookie")
    assert {cookie.split("Path=")[1] for cookie in cookies} == {browser.page, path}
    assert all("; HttpOnly; SameSite=Strict; " in cookie for cookie in cookies)
    assert cookies[0].split(";")[0] == browser.cookie
    assert browser.ask("GET", path, Cookie=None)[0] == 403
    assert browser.ask("GET", path)[0] == 303  # the same browser again
    assert browser.ask("GET", "/open/" + "x" * 32)[0] == 403
    accented = f"GET /open/é HTTP/1.1\r\nHost: {browser.host}\r\n\r\n"
    assert raw_answer(browser, accented.encode()).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "changes",
    [
        {"Cookie": None},
        {"Cookie": "echofed-review=x"},
        {"Cookie": "echofed-review="},
        {"Cookie": "a;b=\x01;;"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": "evil.example:{port}"},
        {"Host": None},
        {"Host": ""},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_who_was_not_let_in_reads_nothing(browser: Browser, changes: dict[str, str | None]) -> None:
    port = str(browser.server.server_port)
    changed = {name: value and value.replace("{port}", port) for name, value in changes.items()}
    for inside in ("", "review.js", "cases", "picture/INSTANCE0000/0.png"):
        assert browser.get(inside)[0] == 200
        status, content, _ = browser.get(inside, **changed)
        assert (status, json.loads(content)["code"]) == (403, "EF-700")
    assert browser.post("decision", decision(), **changed)[0] == 403
    assert len(cases(browser.server.review.folder)) == 2


def test_another_page_s_address_reads_nothing(browser: Browser) -> None:
    for path in ("/", "/review/", "/review/x/cases", "/cases", f"/review/{browser.server.page}", "//x/cases"):
        assert browser.ask("GET", path)[0] == 403 or path.endswith(browser.server.page)
    assert browser.ask("GET", f"/review/{browser.server.page[:-1]}/cases")[0] == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1"]
)
def test_a_decision_that_another_page_sends_is_refused(browser: Browser, origin: str | None) -> None:
    said = origin and origin.replace("{port}", str(browser.server.server_port))
    status, answer = browser.post("decision", decision(), Origin=said)
    assert (status, answer["code"]) == (403, "EF-700")
    assert undoable(browser.server.review.folder) == []


def test_two_hosts_are_refused(browser: Browser) -> None:
    lines = [f"GET {browser.page}cases HTTP/1.1", f"Host: {browser.host}", "Host: evil.example"]
    request = "\r\n".join([*lines, f"Cookie: {browser.cookie}", "", ""])
    assert raw_answer(browser, request.encode()).startswith(b"HTTP/1.1 403 ")


def raw_answer(browser: Browser, request: bytes) -> bytes:
    """Send bytes and return what comes back until the connection closes."""
    with socket.create_connection(("127.0.0.1", browser.server.server_port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"PUT / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET " + b"/" * 70_000,
    ],
)
def test_what_is_not_http_is_answered_shortly_and_in_silence(
    browser: Browser, request_bytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = raw_answer(browser, request_bytes)
    assert b"EF-210" in answer
    assert b"<html" not in answer.lower()
    assert browser.get("cases")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_nothing_is_cached_and_nothing_comes_from_elsewhere(browser: Browser) -> None:
    answers = [
        browser.get(inside)[2]
        for inside in ("", "review.js", "review.css", "cases", "picture/INSTANCE0000/0.png", "no")
    ]
    answers.append(browser.get("", Cookie=None)[2])
    for headers in answers:
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Python" not in headers["Server"]


def test_the_files_name_no_other_host(browser: Browser) -> None:
    for name in ("", "review.js", "picture.js", "texts.js", "review.css"):
        status, content, _ = browser.get(name)
        assert status == 200
        assert b"//" not in content.replace(b"// ", b"")
        assert b"innerHTML" not in content
        assert b"style=" not in content


def test_the_page_is_told_nothing_that_names_anyone(browser: Browser) -> None:
    status, content, _ = browser.get("cases")
    assert status == 200
    assert b"PATIENT" not in content
    assert b"EXAM" not in content
    state = json.loads(content)
    assert [case["instance"] for case in state["cases"]] == ["INSTANCE0000", "INSTANCE0001"]
    assert state["cases"][0] == {
        **{"instance": "INSTANCE0000", "frames": 3, "layout_key": "layout1", "device": "Maker Model 9"},
        **{"why": "WRITING", "height": 120, "width": 200},
        "writing": [{"top": WRITTEN.top, "left": WRITTEN.left, "bottom": WRITTEN.bottom, "right": WRITTEN.right}],
    }


def test_pictures_are_the_frames(browser: Browser) -> None:
    frames = frames_for(a_case(0, frames=3))
    shown = {"0": frames[0], "2": frames[2], "brightest": frames.max(axis=0), "thumbnail": frames[1]}
    for name, wanted in shown.items():
        status, content, headers = browser.get(f"picture/INSTANCE0000/{name}.png")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), wanted)
    status, content, _ = browser.get("picture/INSTANCE0001/thumbnail.png")
    assert Image.open(io.BytesIO(content)).size == (233, 100)


@pytest.mark.parametrize(
    "inside",
    [
        "picture/INSTANCE0000/3.png",
        "picture/NONE/0.png",
        "picture/../x/0.png",
        "picture/INSTANCE0000/-1.png",
        "queue.py",
        "../case.py",
        "%2e%2e/case.py",
        "page.html/",
    ],
)
def test_what_is_not_there_is_refused_with_a_code(browser: Browser, inside: str) -> None:
    status, content, _ = browser.get(inside)
    assert (status, json.loads(content)["code"]) == (409, "EF-210")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_png_and_thumbnail_of_any_size(rows: int, columns: int, most: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (rows, columns), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(grey_png(frame)))), frame)
    small = smaller(frame, most)
    assert 1 <= max(small.shape) <= max(most, 1)
    assert frame.min() <= small.min() <= small.max() <= frame.max()


def test_a_decision_is_kept_and_told(folder: Path) -> None:
    told: list[Decision] = []
    for browser in serving(Review(folder, None, told.append)):
        assert browser.post("decision", decision(remember=True)) == (200, {"instance": "INSTANCE0000"})
        (kept,) = undoable(folder)
        assert told == [kept]
        assert (kept.by, kept.decision, kept.remember, kept.boxes[0].bottom) == ("Dr A. Martin", "accept", True, 30)
        state = json.loads(browser.get("cases")[1])
        assert (state["undoable"], state["masks"]) == (["INSTANCE0000"], {"layout1": [BOX]})
        status, answer = browser.post("decision", decision(decision="reject", boxes=[]))
        assert (status, answer["code"]) == (409, "EF-210")
        assert browser.post("undo", {"instance": "INSTANCE0000"})[0] == 200
        assert undoable(folder) == []
        decide(folder, accepting(a_case(0)))
        assert len(decided(folder)) == 1
        assert browser.post("undo", {"instance": "INSTANCE0000"})[0] == 409


def test_the_name_that_the_command_gave_counts(folder: Path) -> None:
    for browser in serving(Review(folder, "Dr C. Lopez")):
        assert json.loads(browser.get("cases")[1])["who"] == "Dr C. Lopez"
        assert browser.post("decision", decision(by="Someone else"))[0] == 200
        assert browser.post("decision", decision(1, by=None))[0] == 200
        assert {kept.by for kept in undoable(folder)} == {"Dr C. Lopez"}


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        decision(by=None),
        decision(by=""),
        decision(decision="maybe"),
        decision(remember=1),
        decision(boxes=[]) | {"remember": True},
        decision(boxes=[{**BOX, "top": 1.5}]),
        decision(boxes=[{**BOX, "top": -1}]),
        decision(boxes=[{**BOX, "bottom": 1}]),
        decision(boxes=[{**BOX, "right": 10_000}]),
        decision(boxes=[BOX] * 501),
        decision(instance="../INSTANCE0000"),
        decision(instance="NONE"),
        decision(decided_at="2030-01-31T12:00:00+00:00"),
    ],
)
def test_a_decision_that_is_not_sound_is_refused(browser: Browser, content: object) -> None:
    status, answer = browser.post("decision", content)
    assert (status, answer["code"]) == (409, "EF-210")
    assert answer["remedy"]
    assert undoable(browser.server.review.folder) == []


def test_a_body_that_is_not_a_decision_is_refused(browser: Browser) -> None:
    path = browser.page + "decision"
    sound = json.dumps(decision()).encode()
    for body, changes in (
        (b"{", {}),
        (b"[" * 200_000, {}),
        (b"\xff\xfe", {}),
        (sound, {"Content_Type": "text/plain"}),
        (sound, {"Content_Type": "application/x-www-form-urlencoded"}),
        (b"", {"Content_Length": str(MAX_BODY_BYTES + 1)}),
        (b"", {"Content_Length": "9" * 30}),
        (b"", {"Content_Length": "-1"}),
        (sound, {"Content_Length": None}),
        (sound, {"Transfer_Encoding": "chunked"}),
    ):
        status, answer, _ = browser.ask("POST", path, body, **changes)
        assert (status, json.loads(answer)["code"]) == (409, "EF-210"), (body[:10], changes)
    assert undoable(browser.server.review.folder) == []


def test_it_listens_on_loopback_alone(browser: Browser) -> None:
    assert browser.server.server_address[0] == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", browser.server.server_port), timeout=5).close()


def test_a_port_that_is_taken_is_named(browser: Browser) -> None:
    for port in (browser.server.server_port, 70_000):
        with pytest.raises(PortInUseError, match=str(port)):
            ReviewServer(Review(browser.server.review.folder), port)


SERVE = "import sys; from pathlib import Path; from echofed.client.ingest.review.server import serve; serve(Path(sys.argv[1]))"


def test_it_stops_on_ctrl_c(folder: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with process:
        assert process.stdout is not None
        address = process.stdout.readline()
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
