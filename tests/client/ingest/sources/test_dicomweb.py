"""DICOMweb against servers that misbehave in every way we know of."""

import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from pydantic import ValidationError

from echofed.client.ingest.errors import SourceError
from echofed.client.ingest.outcomes import Why
from echofed.client.ingest.sources import dicomweb
from echofed.client.ingest.sources.dicomweb import ACCEPT
from echofed.client.ingest.sources.fetching import fetch_all
from echofed.client.ingest.sources.filters import Filters
from echofed.client.ingest.sources.item import Fetched, Missed, Reason
from echofed.client.ingest.sources.settings import DicomWebSource
from echofed.protocol.key_files import new_tls_key, write_key
from tests.client.ingest.sources.fetches import QUICK, Came, fetch
from tests.client.ingest.sources.samples import small_instance
from tests.client.ingest.sources.web_pacs import BOUNDARY, Handler, WebPacs, serving

FILES = {uid: small_instance(uid) + bytes(5000) for uid in ("2.25.11", "2.25.12", "2.25.13")}
Before = Callable[[Handler, str], bool]


def _fetch(pacs: WebPacs, tmp_path: Path, **settings: object) -> Came:
    source = DicomWebSource.model_validate({"url": pacs.url, **settings})
    return fetch(source, tmp_path / "spool")


def _at(uid: str, answer: Callable[[Handler], None], times: int = 1000) -> Before:
    """Have an instance answered otherwise so many times."""
    left = [times]

    def before(handler: Handler, path: str) -> bool:
        if not path.endswith(uid) or not left[0]:
            return False
        left[0] -= 1
        answer(handler)
        return True

    return before


def _break_off(handler: Handler) -> None:
    handler.send(200, FILES["2.25.12"][:700], {"Content-Type": "application/dicom"}, claimed=len(FILES["2.25.12"]))


@pytest.mark.parametrize("with_length", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_instances_come_byte_for_byte(tmp_path: Path, with_length: bool, chunked: bool) -> None:
    with serving(WebPacs(FILES, with_length=with_length, chunked=chunked)) as pacs:
        assert _fetch(pacs, tmp_path).files == FILES
    accepted = {headers["Accept"] for path, headers in pacs.requests if "/instances/" in path}
    assert accepted == {ACCEPT}
    assert "transfer-syntax=*" in ACCEPT


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_smaller_pages_than_asked_for_are_followed(tmp_path: Path, page: int) -> None:
    with serving(WebPacs(FILES, page=page)) as pacs:
        assert _fetch(pacs, tmp_path).files == FILES


def test_a_server_that_ignores_paging_does_not_loop(tmp_path: Path) -> None:
    with serving(WebPacs(FILES, page=2, ignores_offset=True)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert came.files.keys() == {"2.25.11", "2.25.12"}
    assert came.missed == [Missed("2.25.1.1", Reason.FEWER, 1)]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_fails_is_tried_again(tmp_path: Path, status: int) -> None:
    before = _at("2.25.12", lambda handler: handler.send(status, b"", {"Retry-After": "0"}), times=2)
    with serving(WebPacs(FILES, before)) as pacs:
        assert _fetch(pacs, tmp_path).files == FILES
    assert sum(path.endswith("2.25.12") for path in pacs.paths()) == 3


def test_retry_after_is_kept_to(tmp_path: Path) -> None:
    before = _at("2.25.12", lambda handler: handler.send(503, b"", {"Retry-After": "1"}), times=1)
    start = time.monotonic()
    with serving(WebPacs(FILES, before)) as pacs:
        assert _fetch(pacs, tmp_path).files == FILES
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (lambda handler: handler.send(500, b""), Reason.FAILED, 3),
        (lambda handler: handler.send(404, b""), Reason.NOT_FOUND, 1),
        (lambda handler: handler.send(403, b""), Reason.REFUSED, 1),
        (lambda handler: handler.send(302, b"", {"Location": "http://127.0.0.1:1/"}), Reason.REFUSED, 1),
        (_break_off, Reason.BROKEN_OFF, 3),
        (lambda handler: handler.send(200, b"<html>", {"Content-Type": "text/html"}), Reason.BAD_ANSWER, 1),
        (lambda handler: handler.send_instance(small_instance("2.25.99")), Reason.BAD_ANSWER, 1),
        (lambda handler: handler.send_instance(FILES["2.25.12"] + bytes(2**20)), Reason.TOO_LARGE, 1),
    ],
    ids=["500", "404", "403", "redirection", "breaks off", "web page", "another instance", "too large"],
)
def test_one_missing_instance_does_not_end_the_run(
    tmp_path: Path, answer: Callable[[Handler], None], reason: Reason, requests: int
) -> None:
    with serving(WebPacs(FILES, _at("2.25.12", answer))) as pacs:
        came = _fetch(pacs, tmp_path, max_file_bytes=2**20)
    assert came.files.keys() == {"2.25.11", "2.25.13"}
    assert came.missed == [Missed("2.25.12", reason)]
    assert sum(path.endswith("2.25.12") for path in pacs.paths()) == requests
    assert (came.progress.fetched, came.progress.missed) == (2, 1)


def test_a_transfer_that_breaks_off_once_is_whole_in_the_end(tmp_path: Path) -> None:
    with serving(WebPacs(FILES, _at("2.25.12", _break_off, times=1))) as pacs:
        assert _fetch(pacs, tmp_path).files == FILES


def test_fewer_instances_than_promised_are_reported(tmp_path: Path) -> None:
    with serving(WebPacs(FILES, promised=7)) as pacs:
        came = _fetch(pacs, tmp_path)
    assert came.files == FILES
    assert came.missed == [Missed("2.25.1.1", Reason.FEWER, 4)]


def test_another_patient_and_what_the_filters_exclude_are_marked(tmp_path: Path) -> None:
    files = FILES | {
        "2.25.12": small_instance("2.25.12", patient="P2"),
        "2.25.13": small_instance("2.25.13", Modality="CT"),
        "2.25.14": small_instance("2.25.14", StudyDate="19990101"),
    }
    with serving(WebPacs(files)) as pacs:
        came = fetch(DicomWebSource(url=pacs.url), tmp_path / "spool", Filters(since=date(2020, 1, 1)))
    assert came.whys == {
        "2.25.11": None,
        "2.25.12": Why.WRONG_PATIENT,
        "2.25.13": Why.OTHER_MODALITY,
        "2.25.14": Why.FILTERED,
    }
    assert set(came.patients.values()) == {"P1"}


@pytest.mark.parametrize(
    "answer", [b"", b"{", b"[1]", b"{}", b"[" * 100_000, json.dumps([{"0020000D": {"Value": ["../../x"]}}]).encode()]
)
def test_answers_that_make_no_sense_are_refused(tmp_path: Path, answer: bytes) -> None:
    def before(handler: Handler, path: str) -> bool:
        if path.endswith("/studies"):
            handler.send(200, answer)
            return True
        return False

    with serving(WebPacs(FILES, before)) as pacs:
        try:
            came = _fetch(pacs, tmp_path)
            assert not came.files
        except SourceError as error:
            assert "no sense" in error.what  # noqa: PT017
    assert set(pacs.paths()) == {"/dicom-web/studies"}


def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    stopped = threading.Event()

    def wait(handler: Handler) -> None:
        stopped.wait(5)

    start = time.monotonic()
    with serving(WebPacs(FILES, _at("2.25.12", wait))) as pacs:
        came = _fetch(pacs, tmp_path, timeout_seconds=0.2)
        stopped.set()
    assert came.missed == [Missed("2.25.12", Reason.BROKEN_OFF)]
    assert time.monotonic() - start < 5


def test_no_server_at_all_is_said(tmp_path: Path) -> None:
    with serving(WebPacs(FILES)) as pacs:
        pass
    with pytest.raises(SourceError, match="did not answer"):
        _fetch(pacs, tmp_path)


def test_a_run_that_is_closed_leaves_nothing_behind(tmp_path: Path) -> None:
    with serving(WebPacs(FILES)) as pacs:
        source = DicomWebSource(url=pacs.url)
        outcomes = fetch_all(source, tmp_path / "spool", lambda key: False, Filters(), QUICK, lambda progress: None)
        assert isinstance(next(outcomes), Fetched)
        outcomes.close()  # type: ignore[attr-defined]
    left = list((tmp_path / "spool").iterdir())
    assert len(left) == 1, "what was handed over is the caller's"
    with serving(WebPacs(FILES)) as pacs:
        assert _fetch(pacs, tmp_path).files == FILES


def test_a_slow_consumer_slows_the_transfers_down(tmp_path: Path) -> None:
    files = {f"2.25.{number}": small_instance(f"2.25.{number}") for number in range(100, 200)}
    with serving(WebPacs(files)) as pacs:
        source = DicomWebSource(url=pacs.url)
        outcomes = fetch_all(source, tmp_path / "spool", lambda key: False, Filters(), QUICK, lambda progress: None)
        for _ in range(5):
            with next(outcomes):  # type: ignore[union-attr]
                time.sleep(0.1)
        assert len(list((tmp_path / "spool").iterdir())) < 30
        outcomes.close()  # type: ignore[attr-defined]


def test_an_answer_that_goes_on_behind_its_end_is_cut_off(tmp_path: Path) -> None:
    sent = 0

    def go_on(handler: Handler, path: str) -> bool:
        nonlocal sent
        if "/instances/" not in path:
            return False
        end = f"\r\n--{BOUNDARY}--\r\n".encode()
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        handler.send(200, head + FILES["2.25.11"] + end, {"Content-Type": kind}, claimed=2**40)
        with suppress(OSError):
            while sent < 2**26:
                handler.wfile.write(bytes(2**16))
                sent += 2**16
        return True

    with serving(WebPacs({"2.25.11": FILES["2.25.11"]}, go_on)) as pacs:
        assert list(_fetch(pacs, tmp_path).files) == ["2.25.11"]
    assert sent < 2**26


def test_a_search_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def more(handler: Handler, path: str) -> bool:
        if not path.endswith("/studies") or len(handler.pacs.requests) > 500:
            return False
        uid = f"2.25.{7_000 + len(handler.pacs.requests)}"
        handler.send(200, json.dumps([{"0020000D": {"vr": "UI", "Value": [uid]}}]).encode())
        return True

    for limit in ("MAX_PAGES", "MAX_FOUND"):
        monkeypatch.setattr(dicomweb, limit, 20)
        with serving(WebPacs(FILES, more)) as pacs, pytest.raises(SourceError, match="no end"):
            _fetch(pacs, tmp_path)
        assert 20 <= len(pacs.requests) < 25
        monkeypatch.undo()


def test_a_spool_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    # Nothing can be made in a folder of /proc.
    with serving(WebPacs(FILES)) as pacs:
        spool.symlink_to("/proc/self/task")
        with pytest.raises(SourceError, match="spool"):
            fetch(DicomWebSource(url=pacs.url), spool)


def test_bearer_token_from_a_private_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open-sesame\n")
    token.chmod(0o600)
    with serving(WebPacs(FILES)) as pacs:
        assert _fetch(pacs, tmp_path, token_file=token).files == FILES
        assert {headers["Authorization"] for _, headers in pacs.requests} == {"Bearer open-sesame"}
        token.chmod(0o644)
        with pytest.raises(SourceError, match="others"):
            _fetch(pacs, tmp_path, token_file=token)
        with pytest.raises(SourceError, match="NOT_SET_ANYWHERE"):
            _fetch(pacs, tmp_path, token_env="NOT_SET_ANYWHERE")


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://pacs.example/dicom-web"},
        {"url": "https://user:secret@pacs.example/"},
        {"url": "ftp://pacs.example/"},
        {"url": "https://pacs.example/", "user": "u"},
        {"url": "https://pacs.example/", "password_env": "P"},
        {"url": "https://pacs.example/", "token_env": "T", "user": "u", "password_env": "P"},
        {"url": "https://pacs.example/", "certificate_file": Path("c.pem")},
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DicomWebSource.model_validate(settings)


def test_plain_http_elsewhere_takes_a_word() -> None:
    assert DicomWebSource(url="http://pacs.example/dicom-web", allow_plain_http=True).url.startswith("http:")


def _certificates(folder: Path) -> tuple[Path, Path]:
    """Return certificate and key for 127.0.0.1, signed by itself."""
    key = new_tls_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PACS")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    signed = (
        builder.add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "certificate.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    write_key(folder / "key.pem", key, None)
    return folder / "certificate.pem", folder / "key.pem"


def test_client_certificate_and_authority(tmp_path: Path) -> None:
    theirs, their_key = _certificates(tmp_path / "theirs")
    ours, our_key = _certificates(tmp_path / "ours")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ours)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(theirs, their_key)
    certificate = {"certificate_file": ours, "key_file": our_key}
    with serving(WebPacs(FILES), context) as pacs:
        assert _fetch(pacs, tmp_path, ca_file=theirs, **certificate).files == FILES
        with pytest.raises(SourceError, match="certificate"):
            _fetch(pacs, tmp_path, ca_file=ours, **certificate)
        with pytest.raises(SourceError):
            _fetch(pacs, tmp_path, ca_file=theirs)
        our_key.chmod(0o644)
        with pytest.raises(SourceError, match="others"):
            _fetch(pacs, tmp_path, ca_file=theirs, **certificate)
