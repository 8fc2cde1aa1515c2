"""A real PACS: Debian's Orthanc with DICOMweb, in a network namespace of its own, for it listens on every interface.

The namespace has only loopback and no name; it ends with the last process in it. Needs root, and the packages `orthanc` and
`orthanc-dicomweb` (tests/debian_packages.sh).
"""

import base64
import ctypes
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = "/usr/sbin/Orthanc"
DICOMWEB = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
AE_TITLE, DICOM_PORT, HTTP_PORT = "ORTHANC", 4242, 8042
USER, PASSWORD = "reader", "correct horse"
OUR_AE_TITLE, RECEIVER_PORT = "ECHOFED", 11112
URL = f"http://127.0.0.1:{HTTP_PORT}/dicom-web"
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_START_SECONDS = 30.0


class Orthanc:
    """One Orthanc and its namespace.

    Args:
        folder: for its database, configuration and log.
        changes: of its configuration.
    """

    def __init__(self, folder: Path, changes: Mapping[str, Any]) -> None:
        self._folder, self._changes = folder, changes
        self._namespace = _new_namespace()
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have this thread's new sockets, threads and processes belong to the namespace."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._namespace)
            yield
        finally:
            _enter(here)
            os.close(here)

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        configuration = self._folder / "orthanc.json"
        configuration.write_text(json.dumps({**_configuration(self._folder), **self._changes}))
        with self.inside(), (self._folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, str(configuration)], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.ask("GET", "/system")
            except (OSError, http.client.HTTPException):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self._folder / "orthanc.log").read_text()[-2000:]) from None
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """End it and its namespace."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        os.close(self._namespace)

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Return the answer of its own interface."""
        with self.inside():
            connection = http.client.HTTPConnection("127.0.0.1", HTTP_PORT, timeout=30)
            try:
                token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                connection.request(method, path, body, {"Authorization": f"Basic {token}"})
                response = connection.getresponse()
                content = response.read()
                if response.status != 200:
                    raise AssertionError(f"{method} {path}: {response.status} {content[:200]!r}")
                return json.loads(content or b"null")
            finally:
                connection.close()

    def upload(self, files: Iterable[bytes]) -> None:
        """Have it store DICOM files, as they are."""
        for content in files:
            self.ask("POST", "/instances", content)


@contextmanager
def running(folder: Path, **changes: Any) -> Iterator[Orthanc]:
    """Give a running Orthanc, its configuration changed so; end it at the end."""
    orthanc = Orthanc(folder, changes)
    try:
        orthanc.start()
        yield orthanc
    finally:
        orthanc.close()


def _configuration(folder: Path) -> dict[str, Any]:
    return {
        "Name": "PACS",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [DICOMWEB],
        "HttpPort": HTTP_PORT,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomAet": AE_TITLE,
        "DicomPort": DICOM_PORT,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {"echofed": [OUR_AE_TITLE, "127.0.0.1", RECEIVER_PORT]},
        "AcceptedTransferSyntaxes": ["*"],
        "SyncStorageArea": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
    }


def _new_namespace() -> int:
    """Return a descriptor of a new network namespace whose loopback is up."""
    made: list[int] = []

    def make() -> None:
        # Only this thread moves into it.
        if _LIBC.unshare(_CLONE_NEWNET):
            return
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise PermissionError("a network namespace takes root")
    return made[0]


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network namespace cannot be entered")
