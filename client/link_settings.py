"""How a site reaches its coordinator: `link.yaml` in its state folder, written by hand if the defaults do not do."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from echofed.protocol.document import Document
from echofed.protocol.errors import KeyFileError, ProxyRefusedError, StateFolderError, StudyError
from echofed.protocol.key_files import read_private_file
from echofed.protocol.yaml_text import read_document

FILE_NAME = "link.yaml"


class LinkSettings(Document):
    """The hospital's own HTTP proxy, timeouts and local ports; what is not written has the default."""

    proxy_url: str | None = Field(default=None, max_length=300, description="as in http://proxy.hospital.example:3128.")
    proxy_user: str | None = Field(default=None, min_length=1, max_length=200, description="if the proxy asks for one.")
    proxy_password_env: str | None = Field(default=None, description="environment variable that holds its password.")
    proxy_password_file: Path | None = Field(default=None, description="file that holds its password; mode 0600.")
    connect_timeout_seconds: float = Field(default=10.0, gt=0, le=600)
    read_timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    proxy_port: int = Field(default=0, ge=0, le=65535, description="of the site's own outbound proxy; 0: any free one.")
    runtime_port: int = Field(default=0, ge=0, le=65535, description="of SuperNode's Runtime API; 0: any free one.")

    @field_validator("proxy_url")
    @classmethod
    def _is_a_proxy(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ValueError("write the proxy as http://host:port")
        if parts.username or parts.password:
            raise ValueError("write the proxy's user as proxy_user, and its password into a file or the environment")
        if parts.port is None:  # raises ValueError itself if it is not a port
            raise ValueError("write the proxy's port, as in http://host:3128")
        return url

    @model_validator(mode="after")
    def _passwords_have_a_user(self) -> "LinkSettings":
        given = [one for one in (self.proxy_password_env, self.proxy_password_file) if one is not None]
        if len(given) > 1:
            raise ValueError("write proxy_password_env or proxy_password_file, not both")
        if bool(given) != (self.proxy_user is not None):
            raise ValueError("proxy_user and its password (proxy_password_file or proxy_password_env) go together")
        if self.proxy_user is not None and self.proxy_url is None:
            raise ValueError("proxy_user without proxy_url")
        return self

    @property
    def proxy_address(self) -> tuple[str, int] | None:
        """Host and port of the hospital's proxy, None if there is none."""
        parts = urlsplit(self.proxy_url or "")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None

    def proxy_credentials(self) -> tuple[str, str] | None:
        """Return user and password of the hospital's proxy, None if it asks for none.

        Raises:
            ProxyRefusedError: the password is not where the settings say.
            KeyFileError: others than its owner can read the file it is in.
        """
        if self.proxy_user is None:
            return None
        if self.proxy_password_env is not None:
            password = os.environ.get(self.proxy_password_env)
            if password is None:
                what = f"The proxy's password is to be in {self.proxy_password_env}, which is not set."
                raise ProxyRefusedError(what, "Set it, or write proxy_password_file into link.yaml.")
            return self.proxy_user, password
        assert self.proxy_password_file is not None
        try:
            return self.proxy_user, read_private_file(self.proxy_password_file).decode().rstrip("\r\n")
        except KeyFileError as error:
            if isinstance(error.__cause__, OSError):
                raise self._no_password() from error
            remedy = (
                f"Run `chmod 600 {self.proxy_password_file}`; if others may have read it, have the password changed."
            )
            raise KeyFileError(error.what, remedy) from error
        except UnicodeDecodeError as error:
            raise self._no_password() from error

    def _no_password(self) -> ProxyRefusedError:
        what = f"The proxy's password cannot be read from {self.proxy_password_file}."
        return ProxyRefusedError(what, "Correct proxy_password_file in link.yaml.")


def load_link_settings(state_folder: Path) -> LinkSettings:
    """Return a site's link settings, the defaults if it has written none; a relative file lies in the state folder.

    Raises:
        StateFolderError: the file cannot be read or its content is not sound.
    """
    path = state_folder / FILE_NAME
    if not path.exists():
        return LinkSettings()
    try:
        settings = read_document(path, LinkSettings)
    except StudyError as error:
        raise StateFolderError(error.what, "Correct link.yaml.") from error
    if settings.proxy_password_file is None:
        return settings
    return settings.model_copy(update={"proxy_password_file": state_folder / settings.proxy_password_file})
