"""Filters, as questions and as checks."""

import datetime
from pathlib import Path

import pytest

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.sources.filters import Filters, Selection, read_selection

DAY = datetime.date(2024, 1, 31)
VALUES = {"StudyDate": "20240131", "Modality": "US", "StationName": "Room1", "BodyPartExamined": "BREAST"}


def _allows(selection: Selection, *, is_whole: bool = True, **values: str) -> bool:
    told = VALUES | {"StudyInstanceUID": "1.2", "AccessionNumber": "A1"} | values
    return selection.allows(lambda keyword: told[keyword], is_whole=is_whole)


@pytest.mark.parametrize(
    ("filters", "allowed"),
    [
        (Filters(), True),
        (Filters(since=DAY, until=DAY), True),
        (Filters(since=DAY + datetime.timedelta(1)), False),
        (Filters(until=DAY - datetime.timedelta(1)), False),
        (Filters(modalities=("SR",)), False),
        (Filters(stations=("ROOM1", "ROOM2")), True),
        (Filters(stations=("ROOM2",)), False),
        (Filters(body_parts=("BREAST",)), True),
        (Filters(body_parts=("HEART",)), False),
    ],
)
def test_checks_of_what_arrives(filters: Filters, allowed: bool) -> None:
    assert _allows(read_selection(filters)) == allowed


@pytest.mark.parametrize("keyword", VALUES)
def test_what_a_pacs_does_not_tell_is_left_for_later(keyword: str) -> None:
    selection = read_selection(Filters(since=DAY, stations=("ROOM1",), body_parts=("BREAST",)))
    assert _allows(selection, is_whole=False, **{keyword: ""})
    assert not _allows(selection, **{keyword: ""})


def test_questions() -> None:
    filters = Filters(since=DAY, modalities=("US", "IVUS", "SR"), stations=("ROOM1",), body_parts=("HEART", "CHEST"))
    assert read_selection(filters).study_queries() == [
        {"StudyDate": "20240131-", "ModalitiesInStudy": "US"},
        {"StudyDate": "20240131-", "ModalitiesInStudy": "IVUS"},
    ]
    assert read_selection(filters).series_query() == {"StationName": "ROOM1"}


def test_lists_of_studies(tmp_path: Path) -> None:
    path = tmp_path / "studies.csv"
    path.write_text("label,study_uid,accession_number\nx,1.2,A9\ny,,A2\n")
    selection = read_selection(Filters(studies_file=path))
    assert selection.study_queries() == [{"StudyInstanceUID": "1.2"}, {"AccessionNumber": "A2"}]
    assert _allows(selection)
    assert _allows(selection, StudyInstanceUID="1.3", AccessionNumber="A2")
    assert not _allows(selection, StudyInstanceUID="1.3")
    assert _allows(selection, is_whole=False, StudyInstanceUID="1.3", AccessionNumber="")
    selection.add_found("1.3")
    assert _allows(selection, StudyInstanceUID="1.3")


@pytest.mark.parametrize(
    "content", ["name\nx\n", "study_uid\n1.2*\n", "accession_number\nA?\n", "accession_number\n\\A\n", ""]
)
def test_lists_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "studies.csv"
    path.write_text(content)
    with pytest.raises(IngestError, match="studies"):
        read_selection(Filters(studies_file=path))


def test_days_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(IngestError, match="since"):
        read_selection(Filters(since=DAY, until=DAY - datetime.timedelta(1)))
