"""Writes pixel_hashes.json: SHA-256 of the decoded pixels of all real ultrasound files. Run it as

    python -m tests.client.ingest.make_pixel_hashes ../shared/data

when a decoder changes on purpose, and say in the change log that pixels have changed.
"""

import hashlib
import json
import sys
from pathlib import Path

from echofed.client.ingest.dataset import read_dataset
from echofed.client.ingest.decoding import decode_frames
from tests.client.ingest.ultrasound_files import installed_files, shared_files

HASHES = Path(__file__).parent / "pixel_hashes.json"


def pixel_hash(path: Path) -> str:
    """Return SHA-256 of the shape and the pixels of all frames."""
    digest = hashlib.sha256()
    for frame in decode_frames(read_dataset(path)):
        digest.update(str(frame.shape).encode())
        digest.update(frame.tobytes())
    return digest.hexdigest()


def main() -> None:
    files = {
        "shared/data/dicom_us": shared_files(Path(sys.argv[1])),
        "pydicom and pydicom-data": installed_files(),
    }
    hashes = {source: {path.name: pixel_hash(path) for path in paths} for source, paths in files.items()}
    HASHES.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
