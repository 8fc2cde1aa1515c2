"""Labels: who says what of which exam, and who contradicts whom."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom import Dataset
from pydicom.sequence import Sequence

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.labels import (
    FolderRule,
    LabelRow,
    Labels,
    LabelSettings,
    LabelTable,
    ReportRule,
    agreed_labels,
    configured_labels,
    count_labels,
    read_labels,
)
from echofed.client.ingest.outcomes import SetAsideError, Why
from echofed.client.ingest.report_labels import MAX_DEPTH, MAX_ITEMS, is_report, report_rows

BASIC_TEXT, COMPREHENSIVE = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.88.33"
NAMED = {"benign": "benign", "malignant": "malignant"}
BY_FOLDER = FolderRule(labels=NAMED)
RULE = ReportRule(concept="Diagnosis", labels={"malignant": "malignant", "Benign": "benign", "108369006": "malignant"})


def table(folder: Path, text: str, **columns: Any) -> Labels:
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    columns.setdefault("labels", NAMED)
    return read_labels(LabelSettings(tables=(LabelTable(file=Path("labels.csv"), **columns),)), folder)


def test_labels_are_found_by_accession_number_exam_or_patient(tmp_path: Path) -> None:
    labels = table(tmp_path, "accession;label\n A1 ;benign\nA2;malignant\n\nA3;\n", accession="accession")
    assert labels.label_of("1.2", "A1", "P") == "benign"
    assert labels.label_of("1.3", "A2 ", "P") == "malignant"
    assert labels.label_of("1.4", "A3", "P") is None
    assert labels.label_of("1.5", "", "P") is None
    by_exam = table(tmp_path, "uid,finding\n1.2,benign\n", exam="uid", label="finding")
    assert by_exam.label_of("1.2", "", "") == "benign"
    assert by_exam.label_of("1.2.1", "A1", "P") is None
    by_patient = table(tmp_path, "PID\tlabel\nMü\tbenign\n", patient="PID")
    assert by_patient.label_of("1.2", "A1", "Mu\u0308") == "benign"


def test_the_most_exact_column_decides_and_the_others_must_agree(tmp_path: Path) -> None:
    text = "uid,acc,pid,label\n1.2,A1,P,benign\n1.3,A2,P,malignant\n,,Q,benign\n"
    labels = table(tmp_path, text, exam="uid", accession="acc", patient="pid")
    assert labels.find("1.2", "A1", "P").verdict == "labelled"
    assert labels.label_of("1.3", "A2", "P") == "malignant"
    assert labels.label_of("1.4", "A3", "P") is None
    assert labels.label_of("1.4", "A3", "Q") == "benign"
    assert labels.find("1.2", "A1", "R").verdict == "contradiction"
    assert labels.find("1.2", "A9", "P").verdict == "contradiction"
    assert labels.find("1.2", "", "P").label == "benign"


def test_rows_and_sources_that_disagree_give_no_label(tmp_path: Path) -> None:
    labels = table(tmp_path, "acc,label\nA1,benign\nA1,malignant\nA2,benign\nA2,benign\n", accession="acc")
    assert labels.find("1.2", "A1", "").verdict == "contradiction"
    assert labels.label_of("1.2", "A1", "") is None
    assert labels.label_of("1.3", "A2", "") == "benign"
    more = labels.with_rows([LabelRow("malignant", exam="1.3")])
    assert more.find("1.3", "A2", "").verdict == "contradiction"
    assert labels.label_of("1.3", "A2", "") == "benign"
    foldered = Labels(labels.rows, BY_FOLDER)
    assert foldered.find("1.3", "A2", "", "usb/malignant/1.dcm").verdict == "contradiction"
    assert foldered.label_of("1.3", "A2", "", "usb/benign/1.dcm") == "benign"


@pytest.mark.parametrize(
    ("path", "level", "labels", "label"),
    [
        ("usb/benign/1.dcm", 1, {"benign": "b"}, "b"),
        ("usb\\benign\\P1\\1.dcm", 2, {"benign": "b"}, "b"),
        ("/usb/Benign/P1/1.dcm", 2, {"benign": "b"}, "b"),
        ("usb/unsorted/1.dcm", 1, {"benign": "b"}, None),
        ("benign/1.dcm", 2, {"benign": "b"}, None),
        ("1.dcm", 1, {"benign": "b"}, None),
        ("", 1, {"benign": "b"}, None),
    ],
)
def test_a_folder_can_name_the_label(path: str, level: int, labels: dict[str, str], label: str | None) -> None:
    assert Labels((), FolderRule(level=level, labels=labels)).label_of("1.2", "", "", path) == label


def test_what_a_table_or_folder_says_beyond_the_named_labels_is_never_given(tmp_path: Path) -> None:
    """Names, for instance: a column of labels may hold anything."""
    labels = table(tmp_path, "acc,label\nA1,DUPUIS Zoe\nA2,benign\n", accession="acc")
    assert labels.find("1.2", "A1", "").verdict == "no label"
    assert labels.label_of("1.3", "A2", "") == "benign"
    assert {row.label for row in labels.rows} == {"", "benign"}
    assert Labels((), BY_FOLDER).label_of("1.2", "", "", "usb/DUPUIS Zoe/1.dcm") is None
    for rule in (LabelTable, FolderRule):
        with pytest.raises(ValidationError, match="labels"):
            rule.model_validate({"file": "labels.csv"} if rule is LabelTable else {})


def test_texts_can_stand_for_labels(tmp_path: Path) -> None:
    labels = table(tmp_path, "acc,label\nA1,BI-RADS 5\nA2,bi-rads 2\nA3,other\n", accession="acc", labels={"BI-RADS 5": "m", "BI-RADS 2": "b"})  # fmt: skip  # noqa: E501
    assert [labels.label_of("1", name, "") for name in ("A1", "A2", "A3")] == ["m", "b", None]


def test_everything_is_counted(tmp_path: Path) -> None:
    text = "acc,label\nA1,benign\nA2,benign\nA2,malignant\nA3,\nA9,benign\n"
    labels = table(tmp_path, text, accession="acc")
    asked = [("e1", "A1"), ("e1", "A1"), ("e2", "A2"), ("e3", "A3"), ("e4", "A4")]
    found = [(exam, labels.find(exam, accession, "")) for exam, accession in asked]
    counts = count_labels(labels, found)
    assert (counts.exams, counts.labelled, counts.unlabelled, counts.contradictory) == (4, 1, 2, 1)
    assert (counts.rows, counts.unused_rows, counts.rows_without_label) == (5, 1, 1)
    assert agreed_labels(found) == {"e1": "benign"}


def test_an_exam_in_two_folders_has_no_label() -> None:
    labels = Labels((), BY_FOLDER)
    found = [("e", labels.find("e", "", "", f"usb/{name}/1.dcm")) for name in ("benign", "malignant", "benign")]
    assert count_labels(labels, found).contradictory == 1
    assert agreed_labels(found) == {}


def test_labels_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    labels = table(tmp_path, "acc,label\nA1,benign\n", accession="acc")
    assert pickle.loads(pickle.dumps(labels)).label_of("1", "A1", "") == "benign"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("acc,other\nA1,b\n", "not exactly one called label"),
        ("acc,label,label\nA1,b,c\n", "not exactly one called label"),
        (b"acc,label\nA1,\xff\n", "not UTF-8"),
        ('acc,label\nA1,"b\n', "line"),
    ],
)
def test_a_table_that_cannot_be_read_is_said(tmp_path: Path, text: Any, what: str) -> None:
    with pytest.raises(IngestError, match=what):
        table(tmp_path, text, accession="acc")


def test_a_table_without_header_is_said_without_what_stands_in_it(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"labels\.csv has 4 columns.*called label and one called acc\.") as found:
        table(tmp_path, "DUPUIS ZOE,03/02/1960,A1,benign\nMARTIN Paul,03/02/1961,A2,benign\n", accession="acc")
    assert not any(text in f"{found.value} {found.value.remedy}" for text in ("DUPUIS", "1960", "A1", "MARTIN"))


@pytest.mark.parametrize(
    "label",
    [
        "benign",
        "BI-RADS 4a",
        "F3/F4",
        "H\u00e4mangiom (links)",
        "\u826f\u6027",
        "\u0938\u094c\u092e\u094d\u092f",
        "1.5",
        "a" * 64,
        ".5, x+y_-z",
    ],
)
def test_labels_are_letters_and_digits_of_any_script_and_few_signs(tmp_path: Path, label: str) -> None:
    named = table(tmp_path, f'acc,label\nA1,"{label}"\n', accession="acc", labels={label: label})
    assert named.label_of("1", "A1", "") == label
    assert FolderRule(labels={"x": label}).labels == {"x": label}


@pytest.mark.parametrize(
    "label",
    [
        '=HYPERLINK(""http://x/"")',
        "=1",
        "+1",
        "-1",
        "- 1",
        "@SUM(1)",
        "\uff1d1",
        "a\tb",
        "a\nb",
        "<b>",
        "a;b",
        "a" * 65,
        "F3: x",
        'a""b',
        "a\u202eb",
    ],
)
def test_what_could_be_a_formula_or_markup_is_no_label(tmp_path: Path, label: str) -> None:
    with pytest.raises(ValidationError, match="a label has at most 64"):
        FolderRule(labels={"x": label})
    mapped = table(tmp_path, f'acc,label\nA2,"{label}"\n', accession="acc", labels={label.replace('""', '"'): "b"})
    assert mapped.label_of("1", "A2", "") == "b"


def test_labels_in_the_settings_are_those_that_are_configured() -> None:
    settings = LabelSettings(
        tables=(
            LabelTable(file=Path("a.csv"), exam="uid", labels={"1": "Hepatic Cyst"}),
            LabelTable(file=Path("b.csv"), exam="x", labels=NAMED),
        ),
        reports=(ReportRule(concept="x", labels={"secret": " benign "}),),
        folder=FolderRule(labels={"y": "Adenoma"}),
    )
    assert configured_labels(settings) == {"hepatic cyst", "benign", "malignant", "adenoma"}


def test_a_table_needs_to_be_there_and_to_name_exams(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="cannot be read"):
        read_labels(LabelSettings(tables=(LabelTable(file=Path("none.csv"), exam="uid", labels=NAMED),)), tmp_path)
    with pytest.raises(IngestError, match="needs a column"):
        table(tmp_path, "label\nb\n")


def code(value: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "99TEST", meaning
    return Sequence([item])


def item(concept: str, *children: Dataset, text: str = "", coded: str = "") -> Dataset:
    content = Dataset()
    content.ConceptNameCodeSequence = code("121071", concept)
    if text:
        content.ValueType, content.TextValue = "TEXT", text
    if coded:
        content.ValueType, content.ConceptCodeSequence = "CODE", code(coded, "whatever")
    if children:
        content.ValueType, content.ContentSequence = "CONTAINER", Sequence(children)
    return content


def report(*children: Dataset, sop_class: str = COMPREHENSIVE, completion: str = "COMPLETE") -> Dataset:
    dataset = item("Report", *children)
    dataset.SOPClassUID, dataset.CompletionFlag = sop_class, completion
    dataset.StudyInstanceUID, dataset.AccessionNumber, dataset.PatientID = "1.2", "A1", "P"
    return dataset


@pytest.mark.parametrize("sop_class", [BASIC_TEXT, COMPREHENSIVE])
def test_a_report_labels_its_exam(sop_class: str) -> None:
    coded = report(item("Findings", item("Diagnosis", coded="108369006")), sop_class=sop_class)
    assert is_report(coded)
    rows = report_rows(coded, [RULE])
    assert rows == (LabelRow("malignant", "1.2", "A1", "P"),)
    assert Labels(rows).label_of("1.2", "A1", "P") == "malignant"
    by_code = ReportRule(concept="121071", labels={"benign": "b"})
    assert report_rows(report(item("Diagnosis", text=" BENIGN ")), [by_code])[-1].label == "b"


def test_a_text_counts_only_as_a_whole() -> None:
    rows = report_rows(report(item("Diagnosis", text="not malignant")), [RULE])
    assert [row.label for row in rows] == [""]
    assert count_labels(Labels(rows), []).rows_without_label == 1


def test_a_report_that_contradicts_itself_gives_no_label() -> None:
    rows = report_rows(report(item("Diagnosis", text="benign"), item("Diagnosis", text="malignant")), [RULE])
    assert Labels(rows).find("1.2", "A1", "P").verdict == "contradiction"


def test_reports_that_do_not_count_are_left_alone() -> None:
    one = item("Diagnosis", text="benign")
    assert report_rows(report(one, completion="PARTIAL"), [RULE]) == ()
    assert report_rows(report(one, sop_class="1.2.840.10008.5.1.4.1.1.6.1"), [RULE]) == ()
    assert report_rows(report(item("Height", text="benign")), [RULE]) == ()
    assert report_rows(Dataset(), [RULE]) == ()


def test_a_tree_without_end_is_refused() -> None:
    deep = item("Diagnosis", text="benign")
    for _ in range(MAX_DEPTH + 1):
        deep = item("Findings", deep)
    with pytest.raises(SetAsideError) as too_deep:
        report_rows(report(deep), [RULE])
    assert too_deep.value.why is Why.TOO_DEEP
    with pytest.raises(SetAsideError) as too_large:
        report_rows(report(*[Dataset()] * (MAX_ITEMS + 1)), [RULE])
    assert too_large.value.why is Why.TOO_LARGE


def test_a_damaged_report_is_set_aside() -> None:
    damaged = report(item("Diagnosis", text="benign"))
    damaged.ContentSequence[0].add_new(0x0040A730, "LO", "not a sequence")
    with pytest.raises(SetAsideError) as found:
        report_rows(damaged, [RULE])
    assert found.value.why is Why.DAMAGED
