"""What is wrong with each row of the index, as far as that can be said without a study."""

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from echofed.client.duplicates import near_pairs, perceptual_hash, thumbnail
from echofed.client.images import GreyImage, read_image, read_mask
from echofed.client.index_file import IndexRow
from echofed.client.ingest.frame_store import pixel_key
from echofed.client.reasons import Reason


@dataclass(frozen=True)
class Source:
    """A file that is where the index says.

    Args:
        path: absolute, without symbolic links, inside the data folder.
        size_bytes, modified_ns: what tells whether it changed since.
    """

    path: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Facts:
    """What decoding a file once has told; masks have no hash and no thumbnail.

    Args:
        problem: why it cannot be used; the other fields are then empty.
        key: SHA-256 of shape and pixels, so two files have the same key exactly if they show the same.
        height, width: in pixels.
        looks: perceptual hash, 64 bits.
        thumbnail: 32 x 32 grey levels.
        converted: "", "colour" or "16-bit".
    """

    problem: Reason | None
    key: bytes = b""
    height: int = 0
    width: int = 0
    looks: int = 0
    thumbnail: bytes = b""
    converted: str = ""


@dataclass(frozen=True)
class CheckedRow:
    """A row of the index with the verdict on its image and its mask; both verdicts are None if all is well."""

    row: IndexRow
    image: Source | None
    mask: Source | None
    facts: Facts
    mask_facts: Facts
    reason: Reason | None
    mask_reason: Reason | None


def image_facts(path: Path) -> Facts:
    """Return what there is to know of an image file; never raises on a bad one."""
    image = read_image(path)
    if isinstance(image, Reason):
        return Facts(image)
    pixels = image.pixels
    if pixels.min() == pixels.max():
        return Facts(Reason.CONSTANT, height=pixels.shape[0], width=pixels.shape[1])
    return _usable_facts(image)


def _usable_facts(image: GreyImage) -> Facts:
    small = thumbnail(image.pixels)
    height, width = image.pixels.shape
    looks = perceptual_hash(small)
    return Facts(None, pixel_key(image.pixels), height, width, looks, small.tobytes(), image.converted)


def mask_facts(path: Path) -> Facts:
    """Return what there is to know of a mask file; never raises on a bad one."""
    mask = read_mask(path)
    if isinstance(mask, Reason):
        return Facts(Reason.MASK_UNREADABLE)
    return Facts(None, pixel_key(mask), mask.shape[0], mask.shape[1])


def find_source(folder: str, file: str) -> Source | Reason:
    """Return the file a row names, or `Reason.OUTSIDE` or `Reason.MISSING`.

    Args:
        folder: the data folder, absolute and without symbolic links.
        file: as written in the index; absolute paths, `..` and links that lead out are refused.
    """
    written = PurePosixPath(file)
    if "\0" in file:
        return Reason.MISSING
    if written.is_absolute() or ".." in written.parts or (len(file) > 1 and file[1] == ":"):
        return Reason.OUTSIDE
    path = os.path.realpath(f"{folder}/{file}")
    if not path.startswith(folder.rstrip("/") + "/"):
        return Reason.OUTSIDE
    try:
        status = Path(path).stat()
    except OSError:
        return Reason.MISSING
    if not stat.S_ISREG(status.st_mode):
        return Reason.MISSING
    return Source(path, status.st_size, status.st_mtime_ns)


def index_problems(rows: Sequence[IndexRow]) -> list[Reason | None]:
    """Return what is wrong with each row as it is written.

    A file listed again with the same contents counts once; listed with other contents, no row of it can be believed.
    """
    rows_of_file: defaultdict[str, list[IndexRow]] = defaultdict(list)
    problems: list[Reason | None] = []
    for row in rows:
        rows_of_file[row.file].append(row)
        if row.malformed:
            problems.append(Reason.MALFORMED_ROW)
        elif not row.file:
            problems.append(Reason.NO_FILE_NAME)
        elif not row.patient:
            problems.append(Reason.NO_PATIENT)
        elif len(rows_of_file[row.file]) > 1:
            problems.append(Reason.LISTED_TWICE)
        else:
            problems.append(None)
    differing = {file for file, same in rows_of_file.items() if any(row != same[0] for row in same)}
    for position, row in enumerate(rows):
        if problems[position] in (None, Reason.LISTED_TWICE) and row.file in differing:
            problems[position] = Reason.LISTED_DIFFERENTLY
    return problems


def image_problem(facts: Facts, minimum_side_px: int) -> Reason | None:
    """Return why an image cannot be used at this site, or None."""
    if facts.problem in (None, Reason.CONSTANT) and min(facts.height, facts.width) < minimum_side_px:
        return Reason.TOO_SMALL
    return facts.problem


def shared_images(facts: Sequence[Facts], patients: Sequence[str]) -> tuple[dict[int, Reason], int]:
    """Return which images appear under several patients, and how many only repeat within one patient.

    Nobody can say which of the patients such an image belongs to, and one of them may be in the test: all its copies
    are left out.

    Args:
        facts: of usable images.
        patients: the patient of each.

    Returns:
        Reasons by position in `facts`; and the number of images that repeat an earlier one of the same patient.
    """
    owners: defaultdict[bytes, list[int]] = defaultdict(list)
    for position, fact in enumerate(facts):
        owners[fact.key].append(position)
    firsts = [positions[0] for positions in owners.values()]
    pairs = near_pairs([facts[first].looks for first in firsts], [facts[first].thumbnail for first in firsts])
    reasons: dict[int, Reason] = {}
    repeats: set[int] = set()
    for first, second in pairs:
        both = [*owners[facts[firsts[first]].key], *owners[facts[firsts[second]].key]]
        _judge(both, Reason.NEARLY_SAME, patients, reasons, repeats)
    for positions in owners.values():
        _judge(positions, Reason.SAME_PIXELS, patients, reasons, repeats)
    return reasons, len(repeats - reasons.keys())


def _judge(
    positions: Iterable[int], reason: Reason, patients: Sequence[str], reasons: dict[int, Reason], repeats: set[int]
) -> None:
    group = sorted(positions)
    if len({patients[position] for position in group}) > 1:
        reasons.update(dict.fromkeys(group, reason))
    else:
        repeats.update(group[1:])
