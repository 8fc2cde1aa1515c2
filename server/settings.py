"""What a coordinator sets: `consortium.yaml` in its folder; begun by `echofed consortium init`, then edited by hand."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from echofed.protocol.document import Document
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import StateFolderError, StudyError
from echofed.protocol.membership import Address, ConsortiumName, split_address
from echofed.protocol.yaml_text import read_document

FILE_NAME = "consortium.yaml"


class GatewayLimits(Document):
    """What one site may ask of the gateway."""

    message_bytes: int = Field(default=2**20, ge=2**18, le=2**30, description="of a Flower message or a part of one.")
    blob_bytes: int = Field(default=2 * 2**30, ge=2**16, le=64 * 2**30, description="of a file of parameters.")
    requests_per_second: float = Field(default=50.0, gt=0, le=10_000, description="of one site, over ten seconds.")
    connections_per_site: int = Field(default=32, ge=1, le=1000)
    header_timeout_seconds: float = Field(default=10.0, gt=0, le=600)
    idle_body_timeout_seconds: float = Field(default=30.0, gt=0, le=600, description="no byte of a body: closed.")
    minimum_bytes_per_second: int = Field(default=1024, ge=1, description="slower senders are cut off.")


class ConsortiumSettings(Document):
    """The coordinator's settings; what is not written has the default."""

    name: ConsortiumName
    address: Address = Field(description="host:port under which hospitals reach the gateway.")
    bind_host: str = Field(default="0.0.0.0", description="on which the gateway listens.")  # noqa: S104 (it is the door)
    bind_port: int = Field(ge=1, le=65535, description="not written: the address' port.")
    certificate_days: int = Field(default=14, ge=1, le=90, description="for which a site's certificates are valid.")
    invitation_days: int = Field(default=7, ge=1, le=30, description="for which an invitation is valid.")
    limits: GatewayLimits = GatewayLimits()

    @property
    def server_name(self) -> str:
        """The host in the address: what the server's certificate is for."""
        return split_address(self.address)[0]

    @model_validator(mode="before")
    @classmethod
    def _listen_on_the_address_port(cls, content: Any) -> Any:
        if isinstance(content, dict) and "bind_port" not in content:
            try:
                return {**content, "bind_port": split_address(str(content.get("address")))[1]}
            except ValueError:
                return {**content, "bind_port": 1}  # the address is refused next, in its own words
        return content


def load_settings(folder: Path) -> ConsortiumSettings:
    """Return the settings in a coordinator's folder.

    Raises:
        StateFolderError: there are none, they cannot be read or their content is not sound.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise StateFolderError(f"{folder} was not finished.", "Run `echofed consortium init` again, as before.")
    try:
        return read_document(path, ConsortiumSettings)
    except StudyError as error:
        raise StateFolderError(error.what, "Correct consortium.yaml.") from error


def write_settings(folder: Path, name: str, address: str) -> None:
    """Write a new `consortium.yaml`; all but name and address is left to the defaults."""
    # A JSON string is a YAML string.
    text = (
        "# Written by `echofed consortium init`; docs/coordinator.md lists what else can be set.\n"
        f"name: {json.dumps(name, ensure_ascii=False)}\naddress: {json.dumps(address)}\n"
    )
    replace_file(folder / FILE_NAME, text.encode())
