"""Registering a folder: everything bad is quarantined, counted and said at once."""

import csv
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echofed.client import checks
from echofed.client.duplicates import perceptual_hash, thumbnail
from echofed.client.forgotten import add_forgotten, allow_again
from echofed.client.images import resize_image
from echofed.client.ingest.encryption import make_store_key
from echofed.client.ingest.frame_store import write_frame
from echofed.client.reasons import Reason
from echofed.client.registry import REGISTRY_FILE, open_registry, read_records
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site, open_site
from echofed.protocol.errors import KeyFileError, RegistrationError
from echofed.protocol.key_files import PASSPHRASE_VARIABLE


def test_good_data_are_registered(hospital: Any) -> None:
    hospital.fill(patients=5, images=2)
    report = hospital.site().register()
    assert (report.rows, report.images, report.patients) == (10, 10, 5)
    assert report.quarantined == {}
    assert report.noted == {}
    assert hospital.state.stat().st_mode & 0o777 == 0o700
    assert (hospital.state / REGISTRY_FILE).stat().st_mode & 0o777 == 0o600


def test_every_kind_of_bad_row_is_reported_at_once(hospital: Any, tmp_path: Path) -> None:
    hospital.fill(patients=4)
    outside = tmp_path / "outside.png"
    Image.fromarray(hospital.picture(900)).save(outside)
    (hospital.folder / "link.png").symlink_to(outside)
    os.mkfifo(hospital.folder / "pipe.png")
    (hospital.folder / "folder.png").mkdir()
    damaged = hospital.save("damaged.png", hospital.picture(901))
    content = (hospital.folder / damaged).read_bytes()
    (hospital.folder / damaged).write_bytes(content[: len(content) // 2])
    hospital.add("x", np.full((48, 64), 7, np.uint8))
    hospital.add("x", np.full((1, 1), 7, np.uint8))
    hospital.add("x", hospital.picture(902, 20, 400))
    for file in ("link.png", "../outside.png", str(outside), "C:/outside.png", "a/../../outside.png"):
        hospital.rows.append({"file": file, "patient_id": "x"})
    for file in ("none.png", "pipe.png", "folder.png", "damaged.png", "00000.png/x", "nul\0.png"):
        hospital.rows.append({"file": file, "patient_id": "x"})
    hospital.rows.append({"file": hospital.save("nobody.png", hospital.picture(903)), "patient_id": " "})
    hospital.rows.append({"file": "", "patient_id": "x"})
    twice = hospital.add("t")
    hospital.rows.append(dict(hospital.rows[-1]))
    differing = hospital.add("u")
    hospital.rows.append({**hospital.rows[-1], "patient_id": "v"})
    report = hospital.site().register()
    assert report.quarantined == {
        Reason.MISSING: 5,
        Reason.OUTSIDE: 5,
        Reason.LISTED_DIFFERENTLY: 2,
        Reason.TOO_SMALL: 2,
        Reason.UNREADABLE: 1,
        Reason.CONSTANT: 1,
        Reason.LISTED_TWICE: 1,
        Reason.NO_FILE_NAME: 1,
        Reason.NO_PATIENT: 1,
    }
    assert report.rows == report.images + sum(report.quarantined.values())
    assert report.images == 5
    assert report.files[Reason.LISTED_TWICE] == (twice,)
    assert report.files[Reason.LISTED_DIFFERENTLY] == (differing, differing)
    for reason, count in report.quarantined.items():
        assert f"{count:,}  {reason}" in report.text()
    assert "files" not in report.to_json()


def test_masks_are_checked_and_noted_but_cost_no_image(hospital: Any) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 10:30] = 255
    hospital.save("good.png", mask)
    hospital.save("large.png", np.zeros((50, 64), np.uint8))
    (hospital.folder / "bad.png").write_bytes(b"no")
    for number, name in enumerate(["good.png", "large.png", "bad.png", "none.png", "../m.png", ""]):
        hospital.add(f"p{number}", mask=name)
    report = hospital.site().register()
    assert report.images == 6
    assert set(report.noted) == {
        Reason.MASK_SIZE,
        Reason.MASK_UNREADABLE,
        Reason.MASK_MISSING,
        Reason.MASK_OUTSIDE,
        Reason.NO_MASK,
    }


def test_conversions_and_missing_labels_are_noted(hospital: Any) -> None:
    hospital.add("a", np.stack([hospital.picture(101)] * 3, axis=-1))
    hospital.add("b", hospital.picture(102).astype(np.uint16) * 200)
    hospital.add("c", label="")
    assert hospital.site().register().noted == {
        "image converted from 16-bit to 8-bit grey": 1,
        "image converted from colour to 8-bit grey": 1,
        Reason.NO_LABEL: 1,
    }


def test_copies_under_two_patients_are_quarantined_on_both_sides(hospital: Any) -> None:
    exact, near = hospital.picture(1), hospital.picture(2)
    hospital.add("a", exact)
    hospital.add("b", exact)
    hospital.add("c", exact, file="c.png")
    hospital.add("d", near)
    hospital.add("e", np.asarray(Image.fromarray(near).resize((96, 72))))
    hospital.add("f")
    report = hospital.site().register()
    assert report.quarantined == {Reason.SAME_PIXELS: 3, Reason.NEARLY_SAME: 2}
    assert (report.images, report.patients) == (1, 1)


def test_copies_within_one_patient_are_kept_and_counted(hospital: Any) -> None:
    pixels = hospital.picture(1)
    for _ in range(3):
        hospital.add("a", pixels)
    hospital.add("a", np.asarray(Image.fromarray(pixels).resize((96, 72))))
    report = hospital.site().register()
    assert report.quarantined == {}
    assert report.noted == {"image repeated within one patient": 3}


def test_only_new_and_changed_files_are_decoded_again(hospital: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital.fill(patients=6)
    site = hospital.registered()
    hospital.add("new")
    hospital.save("00000.png", hospital.picture(777, 60, 60))
    (hospital.folder / "00001.png").unlink()
    hospital.write_index()
    decoded: list[str] = []
    read_image = checks.read_image
    monkeypatch.setattr(checks, "read_image", lambda path: (decoded.append(path.name), read_image(path))[1])
    report = site.register()
    assert sorted(decoded) == ["00000.png", "00006.png"]
    assert report.unchanged == 4
    assert report.quarantined == {Reason.MISSING: 1}


def test_files_no_longer_in_the_index_are_forgotten(hospital: Any) -> None:
    hospital.fill(patients=3)
    site = hospital.registered()
    hospital.rows = hospital.rows[:1]
    hospital.write_index()
    site.register()
    with sqlite3.connect(hospital.state / REGISTRY_FILE) as database:
        content = str(database.execute("SELECT path FROM facts").fetchall())
    database.close()
    assert "00000.png" in content
    assert "00001.png" not in content


def test_a_failed_registration_leaves_the_old_one(hospital: Any) -> None:
    hospital.fill(patients=3)
    site = hospital.registered()
    (hospital.folder / "index.csv").write_text("")
    with pytest.raises(RegistrationError, match="is empty"):
        site.register()
    with open_registry(hospital.state) as database:
        assert len(read_records(database)) == 3


def run_until_ready(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """Start a Python process and return once it has printed a line."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


REGISTER_AND_STOP = """
import sys, time
from pathlib import Path
from echofed.client.site import open_site
def progress(done, rows):
    if done == 256:
        print("ready", flush=True)
        time.sleep(600)
open_site(Path(sys.argv[1])).register(progress)
"""

REPLACE_AND_STOP = """
import sys, time
from pathlib import Path
from echofed.client import registration
from echofed.client.registry import replace_records
def slowly(checked):
    for number, row in enumerate(checked):
        if number == 200:
            print("ready", flush=True)
            time.sleep(600)
        yield row
registration.replace_records = lambda database, checked, report: replace_records(database, slowly(checked), report)
registration.register(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("script", [REGISTER_AND_STOP, REPLACE_AND_STOP], ids=["decoding", "replacing"])
def test_killed_while_registering_the_old_registry_stays_and_the_work_is_kept(hospital: Any, script: str) -> None:
    hospital.fill(patients=2)
    hospital.registered()
    hospital.fill(patients=300)
    hospital.write_index()
    kill(run_until_ready(script, hospital.state))
    with open_registry(hospital.state) as database:
        assert len(read_records(database)) == 2
    report = open_site(hospital.state).register()
    assert report.images == 302
    assert report.unchanged >= 256


REGISTER = """
import sys
from pathlib import Path
from echofed.client.site import open_site
from echofed.protocol.errors import EchoFedError
if len(sys.argv) > 2:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    print(open_site(Path(sys.argv[1])).register().images)
except EchoFedError as error:
    print(error)
"""


def test_two_registrations_at_once_both_succeed(hospital: Any) -> None:
    hospital.fill(patients=40)
    hospital.site()
    command = [sys.executable, "-c", REGISTER, str(hospital.state)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[0].strip() for process in running] == ["40"] * 3


def test_a_full_disk_is_said_and_the_old_registry_stays(hospital: Any) -> None:
    hospital.fill(patients=2)
    hospital.registered()
    hospital.fill(patients=60)
    hospital.write_index()
    size = (hospital.state / REGISTRY_FILE).stat().st_size
    command = [sys.executable, "-c", REGISTER, str(hospital.state), str(size + 8192)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.startswith("[EF-201]")
    assert "disk" in said
    with open_registry(hospital.state) as database:
        assert len(read_records(database)) == 2


def test_a_state_folder_belongs_to_one_site(hospital: Any) -> None:
    hospital.fill(patients=1)
    hospital.site()
    with pytest.raises(RegistrationError, match="belongs to site a"):
        create_site(hospital.state, SiteSettings(name="b", data_folder=hospital.folder))
    with pytest.raises(RegistrationError, match="another key"):
        create_site(hospital.state, SiteSettings(name="a", data_folder=hospital.folder), bytes(31) + b"x")


def test_new_settings_replace_the_old(hospital: Any) -> None:
    hospital.add("a", hospital.picture(1, 20, 20))
    assert hospital.site().register().quarantined == {Reason.TOO_SMALL: 1}
    assert hospital.site(minimum_image_side_px=16).register().images == 1


@pytest.mark.parametrize(
    ("statement", "said"),
    [("PRAGMA user_version = 9", "has version 9"), (None, "cannot be used: file is not a database")],
)
def test_a_registry_of_another_version_or_damaged_is_refused(hospital: Any, statement: str | None, said: str) -> None:
    hospital.fill(patients=1)
    hospital.registered()
    path = hospital.state / REGISTRY_FILE
    if statement:
        with sqlite3.connect(path) as database:
            database.execute(statement)
        database.close()
    else:
        path.write_bytes(b"x" * 5000)
    with pytest.raises(RegistrationError, match=said):
        open_site(hospital.state)


def test_a_folder_without_a_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError, match="holds no site"):
        open_site(tmp_path)


def test_real_images_are_registered_without_a_false_alarm(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "breast_federation.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["centre"] in ("Toshiba_Aplio300", "Poland_BrEaST")]
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    settings = SiteSettings(name="real", data_folder=shared_data, index_file=tmp_path / "rows.csv")
    report = create_site(tmp_path / "state", settings).register()
    assert (report.images, report.patients) == (395, 328)
    assert report.quarantined == {}
    assert report.noted == {}


def store_frames(hospital: Any, *, sealed: bool, patients: int = 6) -> dict[str, str]:
    """Fill the hospital with two stored frames a patient; return the patient of each file."""
    key = make_store_key(hospital.folder, "passphrase") if sealed else None
    owners = {}
    for number in range(2 * patients):
        path = write_frame(hospital.folder, f"frame-{number}", hospital.picture(number), {}, key)
        file = str(path.relative_to(hospital.folder))
        owners[hospital.add(f"p{number // 2}", file=file)] = f"p{number // 2}"
    return owners


def whole_state(hospital: Any) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(hospital.state.rglob("*")) if path.is_file())


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed"])
def test_stored_frames_are_registered_and_known_again(
    hospital: Any, make_study: Any, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    files = list(store_frames(hospital, sealed=sealed))
    site = hospital.site()
    report = site.register()
    assert (report.images, report.patients, report.quarantined) == (12, 6, {})
    assert site.register().unchanged == 12
    content = bytearray((hospital.folder / files[0]).read_bytes())
    content[-5] ^= 1
    (hospital.folder / files[0]).write_bytes(content)
    report = site.register()
    assert report.quarantined == {Reason.FRAME_DAMAGED: 1}
    assert report.unchanged == 11
    study = make_study(evaluation={"validation_fraction": 0.0, "test_fraction": 0.0})
    examples = site.examples(study, "training")
    expected = [resize_image(hospital.picture(number), 32, "pad") for number in range(1, 12)]
    np.testing.assert_array_equal(examples.images, expected)


def test_of_an_encrypted_store_nothing_is_kept_in_clear(
    hospital: Any, make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    study = make_study(evaluation={"validation_fraction": 0.0, "test_fraction": 0.0})
    features = np.arange(12 * 8, dtype=np.float32).reshape(12, 8)
    shown = {}
    for sealed in (False, True):
        if sealed:
            hospital.rows.clear()
        store_frames(hospital, sealed=sealed)
        site = hospital.registered()
        images = site.examples(study, "training").images
        kept = site.cached_features(study, "encoder", lambda: [features[:5], features[5:]])
        np.testing.assert_array_equal(kept, features)
        assert not images.flags.writeable
        again = site.examples(study, "training").images
        np.testing.assert_array_equal(again, images)
        assert (again is images) == sealed
        state = whole_state(hospital)
        small = [thumbnail(hospital.picture(number)).tobytes() for number in range(12)]
        looks = [perceptual_hash(np.frombuffer(one, np.uint8).reshape(32, 32)).to_bytes(8, "big") for one in small]
        traces = [images[0, 8].tobytes(), features[3].tobytes(), *(one[64:96] for one in small), *looks]
        shown[sealed] = sum(trace in state for trace in traces)
    assert shown == {False: 26, True: 0}
    assert not list((hospital.state / "cache").glob("*.rows"))


def test_without_the_key_the_registry_stays_as_it_was(hospital: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "a")
    store_frames(hospital, sealed=True)
    site = hospital.registered()
    key_file = hospital.folder / "store.key"
    content = key_file.read_bytes()
    key_file.unlink()
    key_file.write_bytes(content)
    key_file.chmod(0o600)
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    with pytest.raises(KeyFileError, match="encrypted"):
        site.register()
    with open_registry(hospital.state) as database:
        assert [record.reason for record in read_records(database)] == [None] * 12


def test_forgotten_patients_are_counted_and_nothing_else_of_them_is_kept(hospital: Any) -> None:
    hospital.fill(patients=4, images=2)
    hospital.rows.append({"file": "forgotten-file.png", "patient_id": "p1"})
    site = hospital.site()
    add_forgotten(hospital.state, ["p1"])
    report = site.register()
    assert report.quarantined == {Reason.FORGOTTEN: 3}
    assert report.files.get(Reason.FORGOTTEN, ()) == ()
    assert report.rows == report.images + 3
    with open_registry(hospital.state) as database:
        assert {record.patient for record in read_records(database)} == {"p0", "p2", "p3"}
        assert database.execute("SELECT COUNT(*) FROM facts").fetchone() == (6,)
    assert b"forgotten-file" not in whole_state(hospital)
    assert allow_again(hospital.state, ["p1"]) == 1
    assert site.register().patients == 4
