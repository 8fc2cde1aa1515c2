"""The hospital that tests of whole ingests share; none of them changes its export."""

import pytest

from echofed.client.ingest.settings import IngestSettings
from echofed.simulations.phantoms.dicom_files import DicomSite
from tests.client.ingest.small_hospital import quick_settings, small_hospital


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> DicomSite:
    """The export of a small hospital."""
    return small_hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture
def alone(hospital: DicomSite) -> IngestSettings:
    """Settings for a few files: one process."""
    return quick_settings(hospital, workers=1)
