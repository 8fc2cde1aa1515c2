"""The page a hospital reads before it approves: with its own exams, budget and policy."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echofed.client.approvals import approve, receive, refuse, withdraw
from echofed.client.held_studies import read_held_study
from echofed.client.ledger import open_ledger
from echofed.client.policy import FILE_NAME, SitePolicy
from echofed.client.study_page import study_page
from echofed.privacy.accounting import Mechanism
from echofed.privacy.budget import Limits
from echofed.protocol.audit_log import AuditLog, open_audit_log
from echofed.protocol.publication import Withdrawal
from echofed.protocol.signing import sign
from echofed.protocol.study import PRINTABLE
from echofed.protocol.study_folder import PARAMETERS_FILE
from tests.study_files import CONSORTIUM, COORDINATOR, StudyFiles, write_study_files
from tests.study_files import Hospital as Keys

NORTH = Keys()
WIDE = Limits(1000.0, 1000.0, 1e-3, 1e-3)


@pytest.fixture
def offered(tmp_path: Path) -> StudyFiles:
    return write_study_files(
        tmp_path / "offered",
        title="Breast lesions",
        federation={"rounds": 20},
        evaluation={"minimum_patients": 5, "every_rounds": 10},
    )


@pytest.fixture
def log(hospital: Any) -> Iterator[AuditLog]:
    hospital.state.mkdir(exist_ok=True)
    with open_audit_log(hospital.state, owner="north") as opened:
        yield opened


def page(hospital: Any, log: AuditLog, offered: StudyFiles, *, parameters: bool = True) -> str:
    receive(hospital.state, [offered.signed()], member=NORTH, log=log)
    held = read_held_study(hospital.state, offered.study.hash, NORTH)
    if parameters:
        shutil.copy(offered.parameters_path, held.folder / PARAMETERS_FILE)
    return study_page(hospital.state, read_held_study(hospital.state, offered.study.hash, NORTH))


def test_the_page_says_what_the_hospital_needs_to_know(hospital: Any, log: AuditLog, offered: StudyFiles) -> None:
    hospital.fill(30, images=2)
    hospital.registered()
    (hospital.state / FILE_NAME).write_text("hours: 20:00-06:00\nminimum_patients: 5\n")
    text = page(hospital, log, offered)
    counted = hospital.site().check(offered.study)
    for words in (
        "Breast lesions\n==============",
        "What is computed",
        f"training    {counted.patients['training']} patients, {counted.images['training']} images",
        f"benign: {counted.labels['benign']['patients']} patients",
        "These counts stay here.",
        "20 times, at 20:00-06:00, our time: one update of at most 1 KiB",
        "2 times: how the model does on our validation patients",
        "To come   1 x noise 10; 40 x noise",
        "Study     epsilon about",
        "Together  epsilon",
        "Fits.",
        "It allows the study.",
        f'To approve: echofed site approve {offered.study.hash[:12]} --by "NAME"',
        offered.study.hash,
    ):
        assert words in text, text
    assert max(map(len, text.splitlines())) <= 120
    assert not (hospital.state / "ledger").exists()
    assert "study received" in [entry.event for entry in log.entries()]


def test_what_earlier_studies_spent_is_counted(
    hospital: Any, log: AuditLog, offered: StudyFiles, tmp_path: Path
) -> None:
    hospital.fill(30)
    hospital.registered()
    (hospital.state / FILE_NAME).write_text("minimum_patients: 5\nepsilon_per_year: 8.5\n")
    assert "Fits." in page(hospital, log, offered)
    other = write_study_files(tmp_path / "other", title="Earlier").study
    with open_ledger(hospital.state, SitePolicy()) as ledger:
        ledger.spend(other, 1, "training", Mechanism(1.2, 1.0, 10), "d" * 64, WIDE)
    assert "Does not fit." in page(hospital, log, offered)


def test_what_approved_studies_are_still_to_spend_is_counted(
    hospital: Any, log: AuditLog, offered: StudyFiles, tmp_path: Path
) -> None:
    hospital.fill(30)
    hospital.registered()
    (hospital.state / FILE_NAME).write_text("minimum_patients: 5\n")
    earlier = write_study_files(tmp_path / "earlier", title="Earlier", federation={"rounds": 20})
    study, options = earlier.study.hash, {"member": NORTH, "log": log}
    page(hospital, log, earlier)
    assert "with what is approved already" not in page(hospital, log, offered)
    approve(hospital.state, study, "Dr B. Petit", **options)
    text = page(hospital, log, offered)
    reached = float(text.split("Approved  with what is approved already: about ")[1].split(" of 10")[0])
    assert 10 < reached < 16
    assert f"Fits only if Earlier ({study[:12]}) stops before its end." in text
    (hospital.state / FILE_NAME).write_text("minimum_patients: 5\nepsilon_per_cohort: 16\n")
    assert "Fits.\n" in page(hospital, log, offered)
    (hospital.state / FILE_NAME).write_text("minimum_patients: 5\nepsilon_per_cohort: 16\nepsilon_per_year: 10\n")
    assert "Fits only if Earlier" in page(hospital, log, offered)
    withdraw(hospital.state, study, "Dr B. Petit", **options)
    assert "with what is approved already" not in page(hospital, log, offered)


def test_a_year_that_is_spent(hospital: Any, log: AuditLog, offered: StudyFiles) -> None:
    hospital.fill(30)
    hospital.registered()
    (hospital.state / FILE_NAME).write_text("minimum_patients: 5\nepsilon_per_year: 1\n")
    text = page(hospital, log, offered)
    assert "IT DOES NOT ALLOW THE STUDY:\n  - epsilon_per_year: 1; the study asks for 8." in text
    assert "Does not fit. With this, the releases of 365 days would reach epsilon" in text


def test_a_policy_that_forbids_it(hospital: Any, log: AuditLog, offered: StudyFiles) -> None:
    hospital.fill(30)
    hospital.registered()
    (hospital.state / FILE_NAME).write_text("allowed_tasks: [regression]\nminimum_sites: 4\n")
    text = page(hospital, log, offered)
    assert "IT DOES NOT ALLOW THE STUDY:" in text
    assert "  - allowed_tasks: regression; the study's task is binary." in text
    assert "  - minimum_sites: 4; the study publishes a round of 2." in text


def test_a_hospital_without_data_or_with_too_few(hospital: Any, log: AuditLog, offered: StudyFiles) -> None:
    text = page(hospital, log, offered, parameters=False)
    assert "On which of our exams" in text
    assert "holds no site" in text or "registered" in text
    assert "initial parameters are not here yet" in text
    hospital.fill(4)
    hospital.registered()
    text = page(hospital, log, offered)
    assert "Takes no part: " in text


def test_where_it_stands(hospital: Any, log: AuditLog, offered: StudyFiles) -> None:
    hospital.fill(30)
    hospital.registered()
    page(hospital, log, offered)
    study, options = offered.study.hash, {"member": NORTH, "log": log}
    refuse(hospital.state, study, "Dr A. Martin", "Not before June.", **options)
    approve(hospital.state, study, "Dr B. Petit", **options)
    text = page(hospital, log, offered)
    assert "by Dr A. Martin: Not before June." in text
    assert "Approved " in text
    assert f"To stop taking part: echofed site withdraw {study[:12]}" in text
    withdraw(hospital.state, study, "Dr B. Petit", **options)
    assert "Withdrawn " in page(hospital, log, offered)
    withdrawal = Withdrawal(
        consortium=CONSORTIUM, study_hash=study, withdrawn_at="2030-02-02T00:00:00+00:00", reason="A fault."
    )
    receive(hospital.state, [sign(COORDINATOR, "withdrawn publication", withdrawal)], **options)
    text = page(hospital, log, offered)
    assert "TAKEN BACK BY THE COORDINATOR 2030-02-02T00:00:00+00:00: A fault." in text
    assert "To approve" not in text


def test_no_text_of_the_study_can_steer_the_terminal(hospital: Any, log: AuditLog, offered: StudyFiles) -> None:
    hospital.fill(30)
    hospital.registered()
    assert PRINTABLE.startswith("^[^\\x00-\\x1f")
    assert all(letter.isprintable() for letter in page(hospital, log, offered).replace("\n", ""))
