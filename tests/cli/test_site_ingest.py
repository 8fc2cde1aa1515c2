"""`echofed site ingest|receive|review|forget` as a hospital runs them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest
import yaml
from pynetdicom import AE

from echofed.client.forgotten import read_forgotten
from echofed.client.ingest.frame_store import frame_files
from echofed.client.ingest.journal import JOURNAL_FILE, open_journal
from echofed.client.ingest.outcomes import Verdict, Why
from echofed.client.ingest.pseudonyms import open_pseudonyms
from echofed.client.ingest.review.queue import cases
from echofed.protocol.key_files import PASSPHRASE_VARIABLE
from echofed.simulations.phantoms.dicom_files import DicomSite
from tests.client.ingest.small_hospital import changed_copy, clean_files, label_table, small_hospital
from tests.small_simulations import ECHOFED, echofed, environment

INTERRUPTED = 130
OUT_OF_RESOURCES = 0xA700


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> DicomSite:
    return small_hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture
def state(tmp_path: Path, hospital: DicomSite) -> Path:
    """A state folder with an ingest.yaml."""
    return _new_state(tmp_path / "site", hospital)


def _new_state(state: Path, hospital: DicomSite, **changes: object) -> Path:
    (state / "ingest").mkdir(parents=True)
    tables = [label_table(hospital.labels).model_dump(mode="json")]
    settings = {
        "text_check": "strokes",
        "workers": 2,
        "frames": {"rule": "every", "step": 3, "most": 4},
        "labels": {"tables": tables},
        **changes,
    }
    (state / "ingest" / "ingest.yaml").write_text(yaml.safe_dump(settings))
    return state


@contextmanager
def _running(*arguments: object, through: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Run the command, perhaps through others, in a session of its own, as in a terminal; nothing of it is left at the end."""
    process = subprocess.Popen(
        [*through, str(ECHOFED), *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Press Ctrl-C, which a terminal sends to all processes of the session; return what was said."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=60)


def _wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _session(leader: int) -> list[str]:
    """Return the processes of a session that are left."""
    left = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            left.append(path.parent.name)
    return left


def _known(state: Path) -> int:
    """How many instances the journal holds."""
    if not (state / "ingest" / JOURNAL_FILE).exists():
        return 0
    with open_journal(state / "ingest") as journal:
        return sum(1 for _ in journal.entries())


def _holds(folder: Path, *texts: str) -> list[Path]:
    """Return the files that hold one of some texts in their name or bytes, in UTF-8 or UTF-16."""
    needles = [needle for text in texts for needle in (text.encode(), text.encode("utf-16-le"))]
    return [
        path
        for path in sorted(folder.rglob("*"))
        if any(text in path.name for text in texts)
        or (path.is_file() and any(needle in path.read_bytes() for needle in needles))
    ]


def test_an_ingest_is_interrupted_goes_on_and_registers(hospital: DicomSite, state: Path) -> None:
    with _running("site", "ingest", hospital.export, "--state", state) as process:
        _wait_for(lambda: _known(state) >= 2)
        _, said = _interrupt(process)
        assert process.returncode == INTERRUPTED, said
        assert "goes on where it stopped" in said
        assert "Traceback" not in said
        _wait_for(lambda: _session(process.pid) == [], 5)
    assert list((state / "ingest" / "spool").iterdir()) == []
    assert not (state / "ingest" / "index.csv").exists()
    before = _known(state)
    said = echofed("site", "ingest", hospital.export, "--state", state).stdout
    images = [row for row in hospital.rows if row.kind in ("still", "cine")]
    assert 0 < before < len(images)
    assert _known(state) == len(images)
    # The document is read in one of the two runs.
    assert any(f"{len(images) - before + more} instances read" in said for more in (0, 1))
    assert f"echofed site register {state / 'ingest'}" in said
    assert "patients" in echofed("site", "register", state / "ingest", "--state", state).stdout
    # What is outside the filters is looked at again: they may be others by then.
    assert "accepted" not in echofed("site", "ingest", hospital.export, "--state", state).stdout


def test_nothing_to_ingest_and_a_folder_that_is_not_there_are_said(tmp_path: Path) -> None:
    assert "nothing to ingest" in echofed("site", "ingest", "--state", tmp_path / "site", status=2).stderr
    said = echofed("site", "ingest", tmp_path / "nowhere", "--state", tmp_path / "site", status=2).stderr
    assert "error EF-211" in said


def test_what_a_scanner_sends_is_ingested_and_a_forgotten_patient_leaves_no_trace(
    hospital: DicomSite, tmp_path: Path
) -> None:
    state = _new_state(tmp_path / "site", hospital, receiver={"port": 0, "min_free_bytes": 0}, keep_dicom=True)
    files = sorted(hospital.export.rglob("*.dcm"))
    images = [hospital.export / row.file for row in hospital.rows if row.kind in ("still", "cine")]
    assert set(images) <= set(files)
    with _running("site", "receive", "--state", state) as process:
        assert process.stdout is not None
        assert set(_send(_port(process.stdout.readline()), images)) == {0}
        _wait_for(lambda: _known(state) == len(images), 100)
        _wait_for(lambda: (state / "ingest" / "quality.json").exists())
        assert not list((state / "ingest" / "received").glob("*.dcm"))
        said, complaints = _interrupt(process)
        assert process.returncode == 0, complaints
        assert "Stopped" in said
        _wait_for(lambda: _session(process.pid) == [], 5)
    folder = state / "ingest"
    assert len(cases(folder / "review")) > 0
    echofed("site", "register", folder, "--state", state)
    _forget(hospital, state, images)


def test_a_receiver_outlives_an_ingest_that_fails_and_takes_up_what_was_held(
    hospital: DicomSite, tmp_path: Path
) -> None:
    settings = {"receiver": {"port": 0, "min_free_bytes": 0}, "labels": {}}
    state = _new_state(tmp_path / "site", hospital, filters={"stations": ["NOWHERE"]}, **settings)
    folder = state / "ingest"
    received = folder / "received"
    received.mkdir()
    first, second = clean_files(hospital)[:2]
    (received / "first.dcm").write_bytes(first.read_bytes())
    with _running("site", "receive", "--state", state) as process:
        _wait_for((received / "held" / "first.dcm").exists)
        _interrupt(process)
    written = (folder / "ingest.yaml").read_text()
    (folder / "ingest.yaml").write_text(yaml.safe_dump({**yaml.safe_load(written), "filters": {}}))
    (folder / "WITHHELD").write_text("Something was found.\n")
    (received / "second.dcm").write_bytes(second.read_bytes())
    with _running("site", "receive", "--state", state) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        assert process.stdout.readline() == "1 files that were held are tried again.\n"
        assert process.stderr.readline().startswith("error EF-")
        assert "WITHHELD" in process.stderr.readline()
        assert "is kept" in process.stderr.readline()
        assert process.poll() is None
        assert len(list(received.glob("*.dcm"))) == 2
        _interrupt(process)
    (folder / "WITHHELD").unlink()
    with _running("site", "receive", "--state", state) as process:
        _wait_for(lambda: _known(state) == 2)
        _wait_for(lambda: not list(received.rglob("*.dcm")))
        _interrupt(process)


def test_a_patient_is_asked_for_and_nobody_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "site"
    (state / "ingest").mkdir(parents=True)
    asked = [str(ECHOFED), "site", "forget", "-", "--state", str(state)]
    done = subprocess.run(asked, env=environment(), input="MARTINEZ-4477\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Nothing of the patient was here" in done.stdout
    pseudonym = open_pseudonyms(state / "ingest").patient("MARTINEZ-4477")
    assert pseudonym in read_forgotten(state)
    assert "No patient was named" in echofed("site", "forget", "", "--state", state, status=2).stderr


def test_nothing_waits_where_there_is_no_queue(tmp_path: Path) -> None:
    state = tmp_path / "site"
    assert echofed("site", "review", "--state", state).stdout == "Nothing waits for a person.\n"
    assert not state.exists()


def _forget(hospital: DicomSite, state: Path, images: list[Path]) -> None:
    folder = state / "ingest"
    waiting = {case.patient for case in cases(folder / "review")}
    pseudonyms = open_pseudonyms(folder)
    patient = next(row.patient_id for row in hospital.rows if pseudonyms.patient(row.patient_id) in waiting)
    pseudonym = pseudonyms.patient(patient)
    assert _holds(state, pseudonym)
    # What a killed run and the receiver have left of the patient goes, too.
    theirs = next(path for path in images if pydicom.dcmread(path, stop_before_pixels=True).PatientID == patient)
    (folder / "received" / "late.dcm").write_bytes(theirs.read_bytes())
    (folder / "spool" / "left.dcm").write_bytes(theirs.read_bytes())
    # So does what may be the patient's: cut before its pixels, without ids, or never written to its end.
    changed_copy(theirs, folder / "received" / "held" / "nameless.dcm", StudyInstanceUID="")
    (folder / "received" / "held" / "cut.dcm").write_bytes(theirs.read_bytes()[:1200])
    (folder / "received" / "late.dcm.1-1.part").write_bytes(theirs.read_bytes()[:4000])
    assert "Removed" in echofed("site", "forget", patient, "--state", state).stdout
    assert _holds(state, pseudonym, patient) == []
    assert "Nothing of NOBODY was here" in echofed("site", "forget", "NOBODY", "--state", state).stdout
    frames = len(list(frame_files(folder)))
    said = echofed("site", "ingest", hospital.export, "--state", state).stdout
    assert Why.FORGOTTEN in said
    assert _holds(state, pseudonym, patient) == []
    assert len(list(frame_files(folder))) == frames
    with open_journal(folder) as journal:
        assert journal.counts()[Verdict.REFUSED, Why.FORGOTTEN] > 0


def _port(said: str) -> int:
    """Return the port of a receiver from its first words."""
    return int(said.split(":")[-1].split(".")[0])


def _send(port: int, files: list[Path]) -> list[int]:
    """Send files as a scanner does; return the statuses."""
    datasets = [pydicom.dcmread(path) for path in files]
    entity = AE("SCANNER")
    for kind in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in datasets}:
        entity.add_requested_context(*kind)
    association = entity.associate("127.0.0.1", port, ae_title="ECHOFED")
    assert association.is_established
    statuses = [association.send_c_store(one).get("Status") for one in datasets]
    association.release()
    return statuses


def test_the_review_page_is_closed_and_what_was_decided_is_carried_out(hospital: DicomSite, state: Path) -> None:
    echofed("site", "ingest", hospital.export, "--state", state)
    queue = state / "ingest" / "review"
    waiting = cases(queue)
    with _running("site", "review", "--by", "Dr A. Martin", "--state", state) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Open http://127.0.0.1:")
        said, complaints = _interrupt(process)
        assert process.returncode == 0, complaints
    assert f"{len(waiting)} instances wait for a person" in said
    assert len(cases(queue)) == len(waiting) > 0


def test_an_encrypted_store_opens_with_its_passphrase_alone(
    hospital: DicomSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = _new_state(tmp_path / "site", hospital, encryption="passphrase", filters={"stations": []})
    folder = state / "ingest"
    export = tmp_path / "export"
    export.mkdir()
    for path in clean_files(hospital)[:3]:
        (export / path.name).write_bytes(path.read_bytes())
    assert PASSPHRASE_VARIABLE in echofed("site", "ingest", export, "--state", state, status=2).stderr
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    assert "To register" in echofed("site", "ingest", export, "--state", state).stdout
    files = list(frame_files(folder))
    assert files
    assert all(path.read_bytes().startswith(b"EchoFed sealed") for path in files)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong")
    for command in ("ingest", "review"):
        said = echofed("site", command, *([export] if command == "ingest" else []), "--state", state, status=2).stderr
        assert "The passphrase does not open" in said
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    assert f"Usable: {len(files)} images" in echofed("site", "register", folder, "--state", state).stdout


DISK = """
mount -t tmpfs -o size=700k tmpfs {state}
mkdir -p {state}/ingest
cp {settings} {state}/ingest/ingest.yaml
{echofed} site ingest {export} --state {state}
echo "first: $?"
ls {state}/ingest/spool | wc -l
mount -o remount,size=200m {state}
{echofed} site ingest {export} --state {state}
echo "second: $?"
cp {state}/ingest/index.csv {index}
"""


def test_a_full_disk_is_said_and_the_ingest_goes_on_once_there_is_room(hospital: DicomSite, tmp_path: Path) -> None:
    prepared = _new_state(tmp_path / "prepared", hospital) / "ingest" / "ingest.yaml"
    (tmp_path / "small").mkdir()
    script = DISK.format(
        state=tmp_path / "small",
        settings=prepared,
        echofed=ECHOFED,
        export=hospital.export,
        index=tmp_path / "index.csv",
    )
    # The disk is mounted for these processes alone.
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert "first: 2" in done.stdout, done.stderr
    assert "disk" in done.stderr
    assert "full" in done.stderr
    assert "Traceback" not in done.stderr
    assert "second: 0" in done.stdout, done.stderr
    assert len((tmp_path / "index.csv").read_text().splitlines()) > len(clean_files(hospital))


def test_a_receiver_whose_disk_is_full_says_so_and_takes_the_rest_once_there_is_room(
    hospital: DicomSite, tmp_path: Path
) -> None:
    state = _new_state(tmp_path / "site", hospital, receiver={"port": 0, "min_free_bytes": 0}, workers=1)
    received = state / "ingest" / "received"
    received.mkdir()
    images = clean_files(hospital)[:5]
    sizes = [path.stat().st_size for path in images]
    room_bytes = max(sizes) + 2**16
    assert sum(sizes) > room_bytes + 2**16
    # The disk is mounted for this process alone.
    small = f'mount -t tmpfs -o size={room_bytes} tmpfs {received} && exec "$@"'
    through = ["unshare", "--mount", "sh", "-c", small, "sh"]
    with _running("site", "receive", "--state", state, through=through) as process:
        assert process.stdout is not None
        port = _port(process.stdout.readline())
        statuses = _send(port, images)
        refused = [path for path, status in zip(images, statuses, strict=True) if status]
        assert set(statuses) == {0, OUT_OF_RESOURCES}
        on_disk = Path(f"/proc/{process.pid}/root{received}")
        assert {path.suffix for path in on_disk.iterdir()} <= {".dcm"}
        # The ingest makes room; a scanner sends again what was refused.
        while refused:
            _wait_for(lambda: not list(on_disk.glob("*.dcm")))
            statuses = _send(port, refused)
            assert statuses[0] == 0
            refused = [path for path, status in zip(refused, statuses, strict=True) if status]
        _wait_for(lambda: _known(state) == len(images))
        _wait_for(lambda: not list(on_disk.rglob("*.*")))
        said, complaints = _interrupt(process)
        assert (process.returncode, complaints) == (0, "")
        assert Why.DAMAGED not in said
    assert list(received.iterdir()) == []
