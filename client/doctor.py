"""What a hospital's technician asks of a site: is it whole, is it safe, does it reach its coordinator. Nothing is changed."""

import contextlib
import os
import pwd
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from echofed.client.doctor_link import LOOK_SECONDS, look_at_link
from echofed.client.doctor_processes import look_at_port, look_at_processes, look_at_walls
from echofed.client.findings import Finding, State, bad, good, look, warning
from echofed.client.identity import Identity, load_identity
from echofed.client.identity_files import IDENTITY, read_membership
from echofed.client.ledger import read_ledger
from echofed.client.ledger_chain import LEDGER_PATH
from echofed.client.link_settings import LinkSettings, load_link_settings
from echofed.client.policy import FILE_NAME as POLICY_FILE
from echofed.client.policy import load_policy
from echofed.client.registry import REGISTRY_FILE, count_patients, open_registry, read_settings
from echofed.client.splits import KEY_FILE as SPLIT_KEY_FILE
from echofed.client.splits import read_split_key
from echofed.protocol.audit_log import open_existing_log
from echofed.protocol.certificates import check_validity, parse_certificate
from echofed.protocol.key_files import PASSPHRASE_VARIABLE, is_encrypted
from echofed.protocol.membership import (
    CLOCK_TOLERANCE,
    Membership,
    certificates_of,
    iso_time,
    open_membership,
    parse_time,
)
from echofed.protocol.state_folder import STATE_VERSION, check_state_folder
from echofed.protocol.words import fingerprint_words

__all__ = ["Finding", "State", "examine", "is_well"]

TOTAL_SECONDS = 28.0
CHECK_SECONDS = 5.0
"""For each check on this machine; they are quick unless a disk hangs or a log is very long."""
SCARCE_DISK_BYTES, SCARCE_MEMORY_BYTES = 4 * 2**30, 2 * 2**30
"""A sixteenth of it is bad."""
MEMORY_FILE, LOCKS_FILE = Path("/proc/meminfo"), Path("/proc/locks")

_OTHERS = 0o077
_LATE_SHARE = 5 / 6
"""Of a certificate's life; the site renews it after two thirds."""


@dataclass
class _Look:
    """A look at one site: what is known before, and what the checks learn for those after them."""

    folder: Path
    passphrase: str | None
    now: Callable[[], datetime]
    membership: Membership | None = None
    identity: Identity | None = None
    settings: LinkSettings | None = None


def _now() -> datetime:
    return datetime.now(UTC)


def examine(state_folder: Path, *, passphrase: str | None = None, now: Callable[[], datetime] = _now) -> list[Finding]:
    """Return what is good, doubtful and bad about a site. It raises nothing, asks nothing, and takes less than 30 seconds.

    What runs goes on running, and nothing the site has written is changed.

    Args:
        state_folder: the site's.
        passphrase: of its keys; None: from the environment, if they are encrypted.
        now: the clock, UTC.
    """
    site = _Look(state_folder.absolute(), passphrase or os.environ.get(PASSPHRASE_VARIABLE), now)
    deadline = time.monotonic() + TOTAL_SECONDS
    found: list[Finding] = []

    def go_through(checks: Iterable[_Check]) -> None:
        for name, seconds, check in checks:
            found.extend(look(name, min(seconds, deadline - time.monotonic()), partial(check, site)))

    with _eyes_of_the_owner(site.folder):
        go_through([("state folder", CHECK_SECONDS, _state_folder)])
        if not is_well(found):
            return found  # what is not a site's folder, or too new a one, holds nothing that could be judged
        go_through(_OF_THE_SITE)
    go_through(_OF_THE_MACHINE)
    return found


def is_well(findings: Iterable[Finding]) -> bool:
    """Return whether nothing is bad."""
    return all(finding.state != "bad" for finding in findings)


@contextlib.contextmanager
def _eyes_of_the_owner(folder: Path) -> Iterator[None]:
    """See what the site itself sees: root could read everything, and would leave files that the site cannot."""
    before = os.geteuid(), os.getegid(), os.getgroups()
    with contextlib.suppress(OSError):
        owner = folder.stat()
    if before[0] != 0 or not folder.exists() or owner.st_uid == 0:
        yield
        return
    "".encode("idna")  # names are looked up with it, and it is loaded from where only root may be able to read
    try:
        os.setgroups(_groups_of(owner.st_uid, owner.st_gid))
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])


def _groups_of(user: int, group: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(user).pw_name, group)
    except KeyError:
        return [group]


def _state_folder(site: _Look) -> Iterator[Finding]:
    check_state_folder(site.folder, "site")
    mode = stat.S_IMODE(site.folder.stat().st_mode)
    if mode & _OTHERS:
        what = f"Others than its owner can look into {site.folder} (mode {mode:04o})."
        yield warning("state folder", what, f"Run `chmod 700 '{site.folder}'`.")
    else:
        yield good("state folder", f"{site.folder}, version {STATE_VERSION}; only its owner can look into it.")


def _key_files(site: _Look) -> Iterator[Finding]:
    paths = [path for path in sorted((site.folder / IDENTITY).rglob("*")) if path.suffix in (".key", ".pem")]
    paths += [path for path in (site.folder / SPLIT_KEY_FILE,) if path.exists()]
    owner = site.folder.stat().st_uid
    faults = 0
    for path in paths:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_mode & _OTHERS:
            what = f"{path} can be read by others than its owner (mode {stat.S_IMODE(status.st_mode):04o})."
            remedy = f"Run `chmod 600 '{path}'`; if others may have read it, enrol with new keys."
            yield bad("key files", what, remedy)
            faults += 1
        elif status.st_uid != owner:
            what = f"{path} belongs to another user than its folder: the site cannot read it."
            yield bad("key files", what, f"Run `chown --reference='{site.folder}' '{path}'`.")
            faults += 1
    if paths and not faults:
        yield good("key files", f"{len(paths)} files, which only their owner can read.")


def _certificate(site: _Look) -> Iterator[Finding]:
    membership = open_membership(read_membership(site.folder), None)
    site.membership = membership
    moment, issued, expires = site.now(), parse_time(membership.issued_at), parse_time(membership.expires_at)
    check_validity(parse_certificate(membership.root_pem), moment, "The consortium's root certificate")
    words = fingerprint_words(bytes.fromhex(membership.consortium))
    yield good("consortium", f"{membership.consortium_name}; its words are: {words}.")
    if issued > moment + CLOCK_TOLERANCE:
        what = f"The membership was issued at {membership.issued_at}, but this machine's clock says {iso_time(moment)}."
        yield bad("clock", what, "Set the clock (timedatectl shows it).")
    for certificate in certificates_of(membership):
        check_validity(certificate, moment, f"The certificate of {membership.site}")
    what = f"{membership.site}'s, valid to {expires:%Y-%m-%d %H:%M} UTC"
    if moment > issued + (expires - issued) * _LATE_SHARE:
        remedy = "Keep the site running and in touch with the coordinator: it then renews it by itself."
        yield warning("certificate", f"{what}: it should have been renewed by now.", remedy)
    else:
        yield good("certificate", f"{what}; it is renewed by itself.")


def _keys(site: _Look) -> Iterator[Finding]:
    if site.membership is None:
        return
    files = [*(site.folder / IDENTITY).glob("tls-*.pem"), *(site.folder / IDENTITY).glob("signing-*.key")]
    if site.passphrase is None and any(is_encrypted(path) for path in files):
        remedy = f"Set {PASSPHRASE_VARIABLE}, so that the keys and the gateway can be looked at as well."
        yield warning("keys", "They are encrypted, and there is no passphrase.", remedy)
        return
    site.identity = load_identity(site.folder, site.passphrase)
    yield good("keys", "They can be used, and belong to the certificates.")


def _settings(site: _Look) -> Iterator[Finding]:
    site.settings = load_link_settings(site.folder)
    site.settings.proxy_credentials()
    address = site.settings.proxy_address
    how = f"through the hospital's proxy {address[0]}:{address[1]}" if address else "without a proxy"
    yield good("link settings", f"To the coordinator {how}.")


def _policy(site: _Look) -> Iterator[Finding]:
    load_policy(site.folder)
    written = (site.folder / POLICY_FILE).exists()
    yield good("policy", f"{POLICY_FILE} is valid." if written else f"There is no {POLICY_FILE}: the defaults hold.")


def _registry(site: _Look) -> Iterator[Finding]:
    if not (site.folder / REGISTRY_FILE).exists():
        if any((site.folder / path).exists() for path in (SPLIT_KEY_FILE, LEDGER_PATH)):
            yield bad("registry", f"{REGISTRY_FILE} is gone; there was one.", "Restore its newest whole copy.")
        else:
            yield warning("registry", "No data are registered.", "Run `echofed site register`.")
        return
    read_split_key(site.folder)
    with open_registry(site.folder) as database:
        patients, data = count_patients(database), read_settings(database).data_folder
    if not data.is_dir():
        yield bad("registry", f"The data folder {data} is not there.", "Mount it, or register the data where they are.")
    elif patients < (needed := load_policy(site.folder).minimum_patients):
        what = f"{patients} patients are registered; the policy asks for {needed} before anything is told of them."
        yield warning("registry", what, "Run `echofed site register` when there are more data.")
    else:
        yield good("registry", f"{patients} patients are registered.")


def _processes(site: _Look) -> Iterator[Finding]:
    yield from look_at_processes(site.folder)


def _port(site: _Look) -> Iterator[Finding]:
    if site.settings is not None:
        yield from look_at_port(site.folder, site.settings)


def _walls(site: _Look) -> Iterator[Finding]:
    yield from look_at_walls(site.folder)


def _disk(site: _Look) -> Iterator[Finding]:
    place = next(path for path in (site.folder, *site.folder.parents) if path.exists())
    yield _amount("disk", shutil.disk_usage(place).free, SCARCE_DISK_BYTES, "Free some disk space.")


def _memory(_: _Look) -> Iterator[Finding]:
    with MEMORY_FILE.open() as stream:
        words = [line.split() for line in stream]
    available = next(int(word[1]) * 1024 for word in words if word[0] == "MemAvailable:")
    yield _amount("memory", available, SCARCE_MEMORY_BYTES, "Stop other programs, or give the machine more memory.")


def _amount(name: str, size: int, scarce: int, remedy: str) -> Finding:
    what = f"{size / 2**30:.1f} GiB free."
    if size < scarce / 16:
        return bad(name, what, remedy)
    return warning(name, what, remedy) if size < scarce else good(name, what)


def _link(site: _Look) -> Iterator[Finding]:
    if site.membership is not None and site.settings is not None:
        yield from look_at_link(site.membership, site.identity, site.settings, site.now)


def _audit_log(site: _Look) -> Iterator[Finding]:
    if site.membership is None:
        return
    with open_existing_log(site.folder) as log:
        if log.owner != site.membership.site:
            yield bad("audit log", f"It is the log of {log.owner}.", "Restore this site's own.")
            return
        yield good("audit log", f"Verified: {log.verify().entries} entries, none changed and none missing.")


def _ledger(site: _Look) -> Iterator[Finding]:
    if not (site.folder / REGISTRY_FILE).exists():
        return
    chain = read_ledger(site.folder, load_policy(site.folder))
    if chain is None:
        yield good("ledger", "Not begun: nothing about patients has left.")
        return
    holder = _holder(site.folder / LEDGER_PATH.with_name("lock"))
    in_use = f"; in use by process {holder}" if holder else ""
    yield good("ledger", f"Verified: {len(chain.entries)} entries, none changed and none missing{in_use}.")


def _holder(path: Path) -> int | None:
    """Return the process that holds a file's lock. It is not tried: whoever wants it at that instant would be refused."""
    with contextlib.suppress(OSError):
        inode = str(path.stat().st_ino)
        for line in LOCKS_FILE.read_text().splitlines():
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return int(words[4])
    return None


_Check = tuple[str, float, Callable[[_Look], Iterable[Finding]]]
_OF_THE_SITE: tuple[_Check, ...] = (
    ("key files", CHECK_SECONDS, _key_files),
    ("certificate", CHECK_SECONDS, _certificate),
    ("keys", CHECK_SECONDS, _keys),
    ("link settings", CHECK_SECONDS, _settings),
    ("link", LOOK_SECONDS, _link),
    ("policy", CHECK_SECONDS, _policy),
    ("registry", CHECK_SECONDS, _registry),
    ("audit log", CHECK_SECONDS, _audit_log),
    ("ledger", CHECK_SECONDS, _ledger),
)
"""Later ones use what earlier ones learnt."""
_OF_THE_MACHINE: tuple[_Check, ...] = (
    ("disk", CHECK_SECONDS, _disk),
    ("memory", CHECK_SECONDS, _memory),
    ("processes", CHECK_SECONDS, _processes),
    ("proxy port", CHECK_SECONDS, _port),
    ("confinement", CHECK_SECONDS, _walls),
)
"""Root sees more of these than the site's own user."""
