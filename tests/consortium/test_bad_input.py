"""What people get wrong at a hospital and at the coordinator's: each is said clearly, with a code, and breaks nothing."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from echofed.simulations.local_consortium import LocalConsortium
from tests.gateways import free_port
from tests.local_consortia import ENVIRONMENT, enrolled_consortium, wait_for
from tests.small_simulations import ECHOFED, echofed
from tests.small_simulations import environment as normal


@pytest.fixture(scope="module")
def consortium(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalConsortium]:
    """A coordinator that runs, and sites that do not."""
    made = enrolled_consortium(tmp_path_factory.mktemp("bad"), phantoms)
    made.start("coordinator")
    wait_for(lambda: "No study" in said("site", "studies", "--state", made.sites["north"]))
    yield made
    for name in list(made.processes):
        made.stop(name)


@pytest.fixture
def north(consortium: LocalConsortium, tmp_path: Path) -> Path:
    """A copy of north's folder, to be spoiled."""
    return Path(shutil.copytree(consortium.sites["north"], tmp_path / "north"))


def said(*arguments: object, status: int = 0) -> str:
    done = echofed(*arguments, status=status)
    return done.stdout + done.stderr


def started(*arguments: object, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Give a command that is not to start anything, and return its exit status and what it said."""
    done = subprocess.run(
        [str(ECHOFED), *map(str, arguments)],
        env=environment or normal(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_wrong_passphrase(consortium: LocalConsortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invitation, request, state = tmp_path / "east.invitation", tmp_path / "east.request", tmp_path / "east"
    said("consortium", "invite", "east", "--state", consortium.coordinator, "--out", invitation)
    monkeypatch.setenv("ECHOFED_PASSPHRASE", "right")
    words = said("site", "init", invitation, "--state", state, "--out", request, "--encrypt").splitlines()[-2].strip()
    monkeypatch.delenv("ECHOFED_PASSPHRASE")
    said("consortium", "enrol", request, "--words", words, "--state", consortium.coordinator)
    for phrase in ("wrong", ""):
        monkeypatch.setenv("ECHOFED_PASSPHRASE", phrase)
        assert "EF-701" in said("site", "join", tmp_path / "east.membership", "--state", state, status=2)
    monkeypatch.setenv("ECHOFED_PASSPHRASE", "right")
    assert "east is a member" in said("site", "join", tmp_path / "east.membership", "--state", state)
    monkeypatch.setenv("ECHOFED_PASSPHRASE", "wrong")
    assert "passphrase" in said("site", "studies", "--state", state, status=2)
    monkeypatch.delenv("ECHOFED_PASSPHRASE")
    status, text = started("site", "start", "--state", state)
    assert (status, "EF-701" in text) == (2, True)


@pytest.mark.parametrize("pattern", ["signing-*.key", "tls-*.pem"])
def test_a_key_file_of_another_site(consortium: LocalConsortium, north: Path, pattern: str) -> None:
    (mine,) = (north / "identity").glob(pattern)
    (other,) = (consortium.sites["south"] / "identity").glob(pattern)
    shutil.copy(other, mine)
    for command in ("start", "studies"):
        text = said("site", command, "--state", north, status=2)
        assert "EF-701" in text
        assert "is not the key of north's certificate" in text


def test_a_key_that_does_not_match_its_certificate(north: Path) -> None:
    (path,) = (north / "identity").glob("tls-*.pem")
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = path.read_bytes()
    path.write_bytes(key + chain[chain.index(b"-----BEGIN CERTIFICATE") :])
    assert "EF-701" in said("site", "start", "--state", north, status=2)


@pytest.mark.parametrize(
    "spoil", [lambda path: path.chmod(0o644), lambda path: path.unlink(), lambda path: path.write_bytes(b"")]
)
def test_key_files_that_cannot_be_used(north: Path, spoil: Callable[[Path], None]) -> None:
    (path,) = (north / "identity").glob("signing-*.key")
    spoil(path)
    assert "EF-701" in said("site", "start", "--state", north, status=2)


def test_data_registered_under_another_name(consortium: LocalConsortium, north: Path, phantoms: Path) -> None:
    for path in north.glob("registry*"):
        path.unlink()
    register = ("site", "register", phantoms / "north", "--state", north, "--column", "exam=exam_id")
    text = said(*register, "--name", "other", status=2)
    assert "EF-201" in text
    assert "enrolled as north, not as other" in text
    assert "patients" in said(*register)


def test_the_gateways_port_is_in_use(consortium: LocalConsortium, tmp_path: Path) -> None:
    state = tmp_path / "C"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said("consortium", "init", "Another", "--address", f"127.0.0.1:{port}", "--state", state)
        with (state / "consortium.yaml").open("a") as settings:
            settings.write("bind_host: 127.0.0.1\n")
        status, text = started("server", "start", "--state", state)
        assert (status, "EF-804" in text, str(port) in text) == (2, True, True)
    assert not (state / "run" / "processes").exists()


def test_a_second_server_or_site_on_the_same_folder(consortium: LocalConsortium) -> None:
    status, text = started("server", "start", "--state", consortium.coordinator)
    assert (status, "in use by another process" in text) == (2, True)


def test_a_server_that_is_not_there(consortium: LocalConsortium, north: Path) -> None:
    """The address stands in the signed membership: a wrong one shows when it is moved or mistyped by the coordinator."""
    coordinator = consortium.folder / "elsewhere"
    for address, code in ((f"127.0.0.1:{free_port()}", "EF-801"), ("no-such-host.invalid:8443", "EF-801")):
        shutil.rmtree(coordinator, ignore_errors=True)
        shutil.rmtree(north, ignore_errors=True)
        papers = consortium.folder / "papers"
        said("consortium", "init", "Elsewhere", "--address", address, "--state", coordinator)
        said("consortium", "invite", "far", "--state", coordinator, "--out", papers / "far.invitation")
        text = said("site", "init", papers / "far.invitation", "--state", north, "--out", papers / "far.request")
        words = text.splitlines()[-2].strip()
        said("consortium", "enrol", papers / "far.request", "--words", words, "--state", coordinator)
        said("site", "join", papers / "far.membership", "--state", north)
        text = said("site", "studies", "--state", north)
        assert code in text
        assert "What follows is what is held here" in text
        assert address.split(":")[0] in text
        found = {one["name"]: one for one in json.loads(said("site", "doctor", "--state", north, "--json", status=1))}
        assert [one["what"] for one in found.values() if one["state"] == "bad" and address.split(":")[0] in one["what"]]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("allow_without_privcy: true\n", "allow_without_privcy"),
        ("minimum_patients: many\n", "minimum_patients"),
        ("hours: 25:00-06:00\n", "hours"),
        ("minimum_patients: [1\n", "policy.yaml"),
        ("epsilon_per_study: .nan\n", "line 1"),
    ],
)
def test_a_policy_with_a_typo(consortium: LocalConsortium, north: Path, text: str, named: str) -> None:
    (north / "policy.yaml").write_text(text)
    found = said("site", "policy", "check", "--state", north, status=2)
    assert "EF-401" in found
    assert named in found


def test_a_half_written_state_folder(north: Path, tmp_path: Path) -> None:
    marker = json.loads((north / "state.json").read_text())
    for content, words in (
        (None, "holds no site"),
        ("", "damaged"),
        ('{"kind": "si', "damaged"),
        (json.dumps({**marker, "version": 99}), "newer EchoFed"),
        (json.dumps({**marker, "kind": "consortium"}), "folder of a consortium"),
    ):
        (north / "state.json").unlink()
        if content is not None:
            (north / "state.json").write_text(content)
        for command in ("start", "studies"):
            text = said("site", command, "--state", north, status=2)
            assert "EF-710" in text
            assert words in text
        (north / "state.json").write_text(json.dumps(marker))
    membership = (north / "identity" / "membership.json").read_text()
    for content, code in ((membership[: len(membership) // 2], "EF-703"), ("", "EF-703")):
        (north / "identity" / "membership.json").write_text(content)
        assert code in said("site", "start", "--state", north, status=2)
    (north / "identity" / "membership.json").unlink()
    assert "EF-704" in said("site", "start", "--state", north, status=2)
    assert "EF-710" in said("site", "start", "--state", tmp_path / "nowhere", status=2)


def test_a_half_written_coordinators_folder(consortium: LocalConsortium, tmp_path: Path) -> None:
    state = tmp_path / "C"
    said("consortium", "init", "Half", "--address", f"127.0.0.1:{free_port()}", "--state", state)
    for name in ("consortium.yaml", "authority/signing.key", "authority/server.key", "authority/issuing.pem"):
        content = (state / name).read_bytes()
        (state / name).unlink()
        status, text = started("server", "start", "--state", state)
        assert (status, "EF-7" in text) == (2, True), (name, text)
        (state / name).write_bytes(content)
        (state / name).chmod(0o600)
    settings = (state / "consortium.yaml").read_text()
    (state / "consortium.yaml").write_text(f"{settings}certificat_days: 3\n")
    status, text = started("server", "start", "--state", state)
    assert (status, "EF-710" in text, "certificat_days" in text) == (2, True, True)


def at(offset: str) -> dict[str, str]:
    """Return an environment in which the clock is off."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")  # of the Debian package libfaketime
    return normal() | ENVIRONMENT | {"LD_PRELOAD": str(library), "FAKETIME": offset}


@pytest.mark.parametrize(("offset", "code"), [("+1d", "EF-711"), ("-1d", "EF-711"), ("+40d", "EF-702")])
def test_a_clock_that_is_off_is_said(consortium: LocalConsortium, north: Path, offset: str, code: str) -> None:
    """Forty days on, the certificate would have expired: who asks cannot tell which of the two it is, and says both."""
    status, text = started("site", "studies", "--state", north, environment=at(offset))
    assert (status, code in text, "clock" in text) == (0, True, True)
    status, text = started("site", "doctor", "--state", north, environment=at(offset))
    assert (status, "clock" in text) == (1, True)


def test_a_node_with_a_wrong_clock_says_so(consortium: LocalConsortium, north: Path) -> None:
    log = north.parent / "clock.log"
    command = [str(ECHOFED), "site", "start", "--state", str(north)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=at("-1d"), stdout=output, stderr=output)
    try:
        wait_for(lambda: "EF-711" in log.read_text())
        assert "clock" in log.read_text()
        assert process.poll() is None
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()
