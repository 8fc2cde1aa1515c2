"""What a site's node says before it starts anything."""

from pathlib import Path

import pytest

from echofed.cli.site_processes import run_site
from echofed.client.settings import SiteSettings
from echofed.client.site import create_site
from echofed.protocol.errors import RegistrationError
from tests.gateways import make_consortium


def test_data_registered_under_another_name_are_not_trained_on(tmp_path: Path) -> None:
    make_consortium(tmp_path, "north")
    data = tmp_path / "data"
    data.mkdir()
    (data / "index.csv").write_text("file,patient_id,label\nmissing.png,one,benign\n")
    create_site(tmp_path / "north", SiteSettings(name="south", data_folder=data), bytes(32)).register()
    with pytest.raises(RegistrationError, match="registered as south, the site is enrolled as north"):
        run_site(tmp_path / "north")


def test_a_site_without_data_says_so(tmp_path: Path) -> None:
    make_consortium(tmp_path, "north")
    with pytest.raises(RegistrationError):
        run_site(tmp_path / "north")
