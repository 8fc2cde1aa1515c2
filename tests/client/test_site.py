"""A site's data as studies see them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echofed.client.ledger import open_ledger
from echofed.client.policy import SitePolicy
from echofed.client.reasons import Reason
from echofed.client.settings import Columns, SiteSettings
from echofed.client.site import create_site, open_site
from echofed.client.splits import SPLITS, split_of
from echofed.protocol.errors import NoPatientsError, RegistrationError
from echofed.protocol.study import Study
from tests.client.conftest import Hospital

EVERYONE_TRAINS = {"validation_fraction": 0.0, "test_fraction": 0.0}


def training(site: Any, make_study: Any, **parts: Any) -> Any:
    return site.examples(make_study(evaluation=EVERYONE_TRAINS, **parts), "training")


def left_out(site: Any, study: Study) -> dict[str, int]:
    return site.check(study).quarantined


def test_every_patient_is_in_exactly_one_split(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=60, images=3)
    site, study = hospital.registered(), make_study()
    report = site.check(study)
    rows = [np.concatenate(site.examples(study, split).item_images) for split in SPLITS]
    assert sorted(np.concatenate(rows)) == list(range(180))
    assert site.count_patients(study) == report.patients
    assert sum(report.patients.values()) == 60
    assert report.images == {split: 3 * count for split, count in report.patients.items()}
    assert report.items == report.images
    assert report.labels == {label: {"patients": 30, "images": 90} for label in ("benign", "malignant")}
    assert report.quarantined == {}


def test_examples_hold_each_image_with_its_own_answer(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=9, images=2)
    examples = training(hospital.registered(), make_study, preprocessing={"resize": "stretch", "image_size_px": 32})
    assert examples.images.shape == (18, 32, 32)
    assert examples.images.dtype == np.uint8
    assert not examples.images.flags.writeable
    assert examples.targets.dtype == np.float32
    assert examples.patients == 9
    for items in examples.patient_items:
        (number,) = {int(examples.item_images[item][0]) // 2 for item in items}
        assert set(examples.targets[items].ravel()) == {float(number % 2)}
        for item in items:
            (row,) = examples.item_images[item]
            pixels = Image.fromarray(hospital.picture(int(row))).resize((32, 32), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(examples.images[row], pixels)


def test_the_order_is_the_same_each_time_and_says_nothing(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=30)
    first = training(hospital.registered(), make_study)
    again = training(open_site(hospital.state), make_study)
    order = [int(rows[0]) for rows in first.item_images]
    assert order == [int(rows[0]) for rows in again.item_images]
    assert order != sorted(order)


def test_adding_data_moves_no_patient(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=40)
    study = make_study()
    before = members(hospital.registered(), study, hospital)
    hospital.fill(patients=55, images=2)
    after = members(hospital.registered(), study, hospital)
    assert {patient: after[patient] for patient in before} == before
    assert len(after) == 55


def members(site: Any, study: Study, hospital: Any) -> dict[str, str]:
    found = {}
    for split in SPLITS:
        for rows in site.examples(study, split).item_images:
            found[hospital.rows[int(rows[0])]["patient_id"]] = split
    assert found == {patient: split_of(patient, site.split_key, study.evaluation) for patient in found}
    return found


def test_labels_are_checked_against_the_study(hospital: Any, make_study: Any) -> None:
    for number, label in enumerate(["benign", "malignant", "Benign", "", "normal", "cyst", "cyst"]):
        hospital.add(f"p{number}", label=label)
    site = hospital.registered()
    report = site.check(make_study(task={"excluded_labels": ["normal"]}, evaluation=EVERYONE_TRAINS))
    assert report.patients["training"] == 2
    assert report.quarantined == {Reason.UNKNOWN_LABEL: 3, Reason.EXCLUDED: 1, Reason.NO_LABEL: 1}
    assert report.unknown_labels == {"cyst": 2, "Benign": 1}


def test_quarantined_rows_are_counted_in_the_study_too(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=2)
    hospital.rows.append({"file": "none.png", "patient_id": "x", "label": "benign"})
    assert left_out(hospital.registered(), make_study()) == {Reason.MISSING: 1}


def test_multiclass_targets_are_class_numbers(hospital: Any, make_study: Any) -> None:
    labels = ["a", "b", "c"]
    for number in range(6):
        hospital.add(f"p{number}", label=labels[number % 3])
    examples = training(hospital.registered(), make_study, task={"kind": "multiclass", "labels": labels})
    for item, rows in enumerate(examples.item_images):
        assert examples.targets[item, 0] == rows[0] % 3


def test_a_patient_under_several_labels_is_quarantined_if_the_study_says_so(hospital: Any, make_study: Any) -> None:
    hospital.add("a", label="benign")
    hospital.add("a", label="malignant")
    hospital.add("b", label="benign")
    site = hospital.registered()
    assert left_out(site, make_study()) == {}
    assert left_out(site, make_study(task={"one_label_per_patient": True})) == {Reason.SEVERAL_LABELS: 2}


def test_findings_are_read_from_their_columns(hospital: Any, make_study: Any) -> None:
    for number, (cyst, halo) in enumerate(
        [("1", "0"), ("0.0", "1.0"), ("2", "0"), ("yes", "0"), ("", "1"), ("nan", "0")]
    ):
        hospital.add(f"p{number}", F1=cyst, halo=halo, label="")
    site = hospital.registered(columns={"findings": {"cyst": "F1"}})
    task = {"kind": "multilabel", "labels": ["cyst", "halo"]}
    examples = training(site, make_study, task=task)
    targets = {int(rows[0]): tuple(examples.targets[item]) for item, rows in enumerate(examples.item_images)}
    assert targets == {0: (1.0, 0.0), 1: (0.0, 1.0)}
    report = site.check(make_study(task=task))
    assert report.quarantined == {Reason.NOT_A_FINDING: 3, Reason.NO_FINDING: 1}
    assert report.labels == {"cyst": {"patients": 1, "images": 1}, "halo": {"patients": 1, "images": 1}}
    absent = site.check(make_study(task={"kind": "multilabel", "labels": ["cyst", "edge"]}))
    assert absent.missing_columns == ("edge",)
    assert absent.quarantined == {Reason.NO_COLUMN: 6}
    assert "Columns missing in the index: edge." in absent.text()


def test_measured_values_are_scaled_to_the_studys_range(hospital: Any, make_study: Any) -> None:
    for number, value in enumerate(["10", "60", "35.0", "9.9", "1e2", "", "n/a", "3,5", "inf", "1_0"]):
        hospital.add(f"p{number}", ef=value)
    site = hospital.registered()
    task = {"kind": "regression", "labels": ["ef"], "value_range": [10.0, 60.0]}
    examples = training(site, make_study, task=task)
    targets = {int(rows[0]): float(examples.targets[item, 0]) for item, rows in enumerate(examples.item_images)}
    assert targets == {0: 0.0, 1: 1.0, 2: 0.5}
    expected = {Reason.NOT_A_NUMBER: 4, Reason.OUT_OF_RANGE: 2, Reason.NO_VALUE: 1}
    assert left_out(site, make_study(task=task)) == expected


def test_masks_follow_their_images(hospital: Any, make_study: Any) -> None:
    for number in range(4):
        mask = np.zeros((48, 64), np.uint8)
        mask[: 6 * number + 6] = 255
        hospital.add(f"p{number}", mask=hospital.save(f"m{number}.png", mask))
    hospital.add("q")
    site = hospital.registered()
    task = {"kind": "segmentation", "labels": ["lesion"]}
    examples = training(site, make_study, task=task, preprocessing={"resize": "stretch", "image_size_px": 32})
    assert examples.masks.shape == examples.images.shape
    assert examples.targets.shape == (4, 0)
    for rows in examples.item_images:
        assert examples.masks[rows[0]].sum() == (6 * rows[0] + 6) / 48 * 32 * 32
    assert not examples.masks[4].any()
    assert left_out(site, make_study(task=task)) == {Reason.NO_MASK: 1}


def exams(site: Any, make_study: Any, **task: Any) -> list[list[int]]:
    examples = training(site, make_study, task={"unit": "exam", **task})
    return sorted(sorted(map(int, rows)) for rows in examples.item_images)


def test_an_exam_column_makes_exams(hospital: Any, make_study: Any) -> None:
    for patient, exam, label in [
        ("a", "1", "benign"),
        ("a", "1", "benign"),
        ("a", "2", "malignant"),
        ("b", "1", "benign"),
    ]:
        hospital.add(patient, exam=exam, label=label)
    assert exams(hospital.registered(), make_study) == [[0, 1], [2], [3]]


def test_without_an_exam_column_images_with_the_same_answer_form_one(hospital: Any, make_study: Any) -> None:
    for patient, label in [("a", "benign"), ("a", "malignant"), ("a", "benign"), ("b", "benign")]:
        hospital.add(patient, label=label)
    assert exams(hospital.registered(), make_study) == [[0, 2], [1], [3]]


def test_an_exam_under_several_labels_is_left_out(hospital: Any, make_study: Any) -> None:
    for exam, label in [("1", "benign"), ("1", "malignant"), ("2", "benign")]:
        hospital.add("a", exam=exam, label=label)
    site = hospital.registered()
    assert exams(site, make_study) == [[2]]
    assert left_out(site, make_study(task={"unit": "exam"})) == {Reason.EXAM_DISAGREES: 2}


def test_images_beyond_the_studys_number_are_counted(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=3, images=5)
    site = hospital.registered()
    study = make_study(preprocessing={"max_images_per_patient": 2}, evaluation=EVERYONE_TRAINS)
    examples = site.examples(study, "training")
    assert [len(items) for items in examples.patient_items] == [2, 2, 2]
    assert left_out(site, study) == {Reason.TOO_MANY_IMAGES: 9}


def test_a_split_without_patients_is_refused_only_when_asked_for(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=3)
    site, study = hospital.registered(), make_study(evaluation=EVERYONE_TRAINS)
    assert site.check(study).patients == {"training": 3, "validation": 0, "test": 0}
    with pytest.raises(NoPatientsError, match="no usable test patient"):
        site.examples(study, "test")


def test_a_site_without_any_usable_patient_still_reports(hospital: Any, make_study: Any) -> None:
    hospital.add("a", label="cyst")
    site, study = hospital.registered(), make_study()
    assert sum(site.count_patients(study).values()) == 0
    assert "Left out:" in site.check(study).text()
    with pytest.raises(NoPatientsError):
        site.examples(study, "training")


def test_a_site_that_registered_nothing_says_so(hospital: Any, make_study: Any) -> None:
    hospital.fill(patients=1)
    with pytest.raises(RegistrationError, match="No data have been registered"):
        hospital.site().check(make_study())


def test_no_patient_id_is_in_a_report(hospital: Any, make_study: Any) -> None:
    for number in range(4):
        hospital.add(f"SECRET{number}")
    hospital.rows.append({"file": "none.png", "patient_id": "SECRET9"})
    site = hospital.site()
    registered, checked = site.register(), site.check(make_study())
    for text in (registered.text(), checked.text(), json.dumps(registered.to_json()), json.dumps(checked.to_json())):
        assert "SECRET" not in text


def test_real_images_are_read_as_published(shared_data: Path, tmp_path: Path, make_study: Any) -> None:
    settings = SiteSettings(name="real", data_folder=shared_data / "breast_lesions_usg")
    site = create_site(tmp_path, settings)
    site.register()
    study = make_study(task={"excluded_labels": ["normal"]}, evaluation=EVERYONE_TRAINS)
    report = site.check(study)
    assert report.labels == {"benign": {"patients": 154, "images": 154}, "malignant": {"patients": 98, "images": 98}}
    assert report.quarantined == {Reason.EXCLUDED: 4}
    findings = ["spiculated", "halo", "calcifications"]
    several = site.check(make_study(task={"kind": "multilabel", "labels": findings}))
    assert [several.labels[name]["patients"] for name in findings] == [33, 55, 27]
    outlined = make_study(task={"kind": "segmentation", "labels": ["lesion"]}, evaluation=EVERYONE_TRAINS)
    examples = site.examples(outlined, "training")
    assert examples.masks is not None
    shares = [examples.masks[rows[0]].mean() for rows in examples.item_images]
    assert len(shares) == 256
    assert sum(share == 0 for share in shares) == 4
    assert max(shares) < 0.9


def test_a_lost_split_key_is_not_replaced(hospital: Hospital) -> None:
    """Another key would move patients between training, validation and test, and what they spent would be forgotten."""
    hospital.fill(12)
    site = hospital.registered()
    (hospital.state / "split.key").unlink()
    with pytest.raises(RegistrationError, match="is gone"):
        open_site(hospital.state)
    with pytest.raises(RegistrationError, match="is gone"):
        create_site(hospital.state, site.settings)
    assert not (hospital.state / "split.key").exists()


def test_patients_keep_their_column_once_they_have_spent(hospital: Hospital) -> None:
    hospital.fill(12)
    site = hospital.registered()
    settings = site.settings.model_copy(update={"columns": Columns(patient="file")})
    create_site(hospital.state, settings)
    create_site(hospital.state, site.settings).register()
    open_ledger(hospital.state, SitePolicy()).close()
    with pytest.raises(RegistrationError, match="have spent"):
        create_site(hospital.state, settings)
