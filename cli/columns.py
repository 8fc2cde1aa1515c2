"""`--column NAME=HEADER` options."""

from collections.abc import Sequence

from echofed.client.settings import Columns
from echofed.protocol.errors import RegistrationError


def read_columns(options: Sequence[str]) -> Columns:
    """Return the names of an index's columns; whatever is neither file, patient, exam, mask nor label is a finding.

    Raises:
        RegistrationError: an option is not of the form NAME=HEADER.
    """
    named: dict[str, str] = {}
    for option in options:
        name, sign, header = option.partition("=")
        if not (name and sign and header):
            raise RegistrationError(f"'{option}' is not of the form NAME=HEADER.", "Write e.g. --column patient=PID.")
        named[name] = header
    known = {name: header for name, header in named.items() if name in Columns.model_fields and name != "findings"}
    findings = {name: header for name, header in named.items() if name not in known}
    return Columns.model_validate({**known, "findings": findings})
