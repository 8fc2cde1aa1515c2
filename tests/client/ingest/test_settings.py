"""`ingest.yaml`: defaults, paths from its own folder, mistakes named."""

import datetime
from pathlib import Path

import pytest

from echofed.client.ingest.errors import IngestError
from echofed.client.ingest.settings import IngestSettings, read_settings
from echofed.client.ingest.sources.settings import DicomWebSource


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == IngestSettings()
    assert read_settings(tmp_path).text_check == "ocr"


def test_relative_paths_start_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "ingest.yaml").write_text(
        "source:\n  kind: dicomweb\n  url: https://pacs.hospital.example/dicom-web\n  ca_file: pacs.pem\n"
        "filters:\n  since: 2024-01-31\n  studies_file: /lists/studies.csv\n"
        "labels:\n  tables:\n    - file: labels.csv\n      accession: number\n      labels: {cyst: benign}\n"
        "  reports:\n    - concept: Finding\n      labels: {cyst: benign}\n"
        "merges: merges.csv\n"
    )
    settings = read_settings(tmp_path)
    assert isinstance(settings.source, DicomWebSource)
    assert settings.source.ca_file == tmp_path / "pacs.pem"
    assert settings.filters.since == datetime.date(2024, 1, 31)
    assert settings.filters.studies_file == Path("/lists/studies.csv")
    assert settings.labels.tables[0].file == tmp_path / "labels.csv"
    assert settings.merges == tmp_path / "merges.csv"
    assert settings.wanted.modalities == ("US", "SR")


@pytest.mark.parametrize("text", ["text_check: none", "sources: []", "source:\n  kind: ftp", "workers: 0"])
def test_mistakes_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "ingest.yaml").write_text(text)
    with pytest.raises(IngestError, match=r"ingest\.yaml"):
        read_settings(tmp_path)
