"""A site: its registered data, as studies see them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echofed.client.cache import hold_rows, keep_rows
from echofed.client.forgotten import read_forgotten
from echofed.client.image_cache import any_encrypted, cached_images, cached_masks
from echofed.client.registration import Progress, register
from echofed.client.registry import REGISTRY_FILE, Record, create_registry, open_registry, read_records, read_settings
from echofed.client.reports import RegistrationReport, SiteReport, counts_by_reason
from echofed.client.selection import Item, Selection, select
from echofed.client.settings import SiteSettings
from echofed.client.splits import SPLITS, Split, keep_split_key, read_split_key, split_of
from echofed.learning.examples import Examples
from echofed.protocol.document import canonical_json
from echofed.protocol.errors import NoPatientsError, RegistrationError
from echofed.protocol.study import Study

__all__ = ["Site", "Split", "create_site", "open_site"]


class Site:
    """A hospital's registered data; made by `create_site` or `open_site`.

    It sees the registry as it was when first asked, or after its own `register`; open it again to see later changes.

    Args:
        state_folder: what the site keeps: registry, caches and its key; readable by its owner only.
        settings: where the data lie.
        split_key: 32 bytes that decide who is in the test.
    """

    def __init__(self, state_folder: Path, settings: SiteSettings, split_key: bytes) -> None:
        self.state_folder, self.settings, self.split_key = state_folder, settings, split_key
        self._records: list[Record] | None = None
        self._selections: dict[str, Selection] = {}

    @property
    def name(self) -> str:
        """The site's name in the consortium."""
        return self.settings.name

    def register(self, progress: Progress = lambda done, rows: None) -> RegistrationReport:
        """Check and register the data; see `registration.register`."""
        report = register(self.state_folder, progress)
        self._records, self._selections = None, {}
        return report

    def check(self, study: Study) -> SiteReport:
        """Return what the site can bring to a study, without decoding an image.

        Raises:
            RegistrationError: nothing is registered.
        """
        selection = self._select(study)
        splits = {split: self._patients(study, split) for split in SPLITS}
        quarantined = Counter(record.reason for record in self._all_records() if record.reason)
        return SiteReport(
            site=self.name,
            study_hash=study.hash,
            patients={split: len(patients) for split, patients in splits.items()},
            images={split: sum(map(_images, patients)) for split, patients in splits.items()},
            items={split: sum(map(len, patients)) for split, patients in splits.items()},
            labels=_label_counts(study, selection),
            quarantined=counts_by_reason(Counter(map(str, quarantined.elements())) + selection.left_out),
            unknown_labels=counts_by_reason(selection.unknown_labels),
            missing_columns=tuple(sorted(selection.missing_columns)),
        )

    def count_patients(self, study: Study) -> dict[Split, int]:
        """Return the number of usable patients in each split.

        Raises:
            RegistrationError: nothing is registered.
        """
        return {split: len(self._patients(study, split)) for split in SPLITS}

    def examples(self, study: Study, split: Split) -> Examples:
        """Return the patients of one split.

        The order is fixed by the site's key and tells nothing about a patient. Images are the site's whole cache,
        memory-mapped and read-only; items point to its rows.

        Raises:
            NoPatientsError: the split has no usable patient.
            RegistrationError: nothing is registered, or a file changed since.
            CacheError: the cache cannot be written.
        """
        patients = self._patients(study, split)
        if not patients:
            raise NoPatientsError(f"{self.name} has no usable {split} patient for this study.")
        records, folder = self._usable(), self._cache_folder()
        items = [item for patient in patients for item in patient]
        ends = np.cumsum([len(patient) for patient in patients])
        outputs = len(items[0].target)
        segmenting = study.task.kind == "segmentation"
        return Examples(
            images=cached_images(folder, records, study.preprocessing),
            masks=cached_masks(folder, records, study.preprocessing) if segmenting else None,
            targets=np.array([item.target for item in items], np.float32).reshape(len(items), outputs),
            item_images=tuple(np.array(item.rows, np.int64) for item in items),
            patient_items=tuple(np.split(np.arange(len(items), dtype=np.int64), ends[:-1])),
        )

    def cached_features(
        self, study: Study, encoder: str, compute: Callable[[], Iterable[NDArray[np.float32]]]
    ) -> NDArray[np.float32]:
        """Return the features of every row of `Examples.images`, float32 [images, dimensions], computed once.

        They are kept under the hash of the encoder and of the preprocessing; those of an encrypted store in memory, as images
        can be guessed from them.

        Args:
            study: with a fixed encoder.
            encoder: hash of the encoder's parameters, hexadecimal.
            compute: yields the features of all images in order, some at a time.

        Raises:
            CacheError: the cache cannot be written.
        """
        records = self._usable()
        keep = hold_rows if any_encrypted(records) else keep_rows
        path = self._cache_folder() / f"features-{_features_hash(study, encoder)}.rows"
        return keep(path, [record.key for record in records], np.float32, compute)

    def _all_records(self) -> list[Record]:
        if self._records is None:
            with open_registry(self.state_folder) as database:
                records = read_records(database)
            # Whoever is being forgotten is left out before the registry has caught up.
            forgotten = read_forgotten(self.state_folder)
            self._records = [record for record in records if record.patient not in forgotten]
        return self._records

    def _usable(self) -> list[Record]:
        return [record for record in self._all_records() if record.reason is None]

    def _select(self, study: Study) -> Selection:
        if study.hash not in self._selections:
            columns = self.settings.columns.findings
            self._selections[study.hash] = select(self._usable(), study, columns, self.split_key)
        return self._selections[study.hash]

    def _patients(self, study: Study, split: Split) -> list[list[Item]]:
        patients = self._select(study).patients
        return [
            items for patient, items in patients.items() if split_of(patient, self.split_key, study.evaluation) == split
        ]

    def _cache_folder(self) -> Path:
        folder = self.state_folder / "cache"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder


def create_site(state_folder: Path, settings: SiteSettings, split_key: bytes | None = None) -> Site:
    """Make a site's state folder, or give an existing site new settings; then `register` its data.

    Args:
        state_folder: made if absent, readable by its owner only.
        settings: where the data lie.
        split_key: 32 bytes; for simulations, whose splits are to follow a seed. Absent: from the operating system.

    Raises:
        RegistrationError: the folder belongs to another site, was split with another key or cannot be written.
    """
    try:
        state_folder.mkdir(parents=True, exist_ok=True)
        state_folder.chmod(0o700)
        is_new = not (state_folder / REGISTRY_FILE).exists()
        key = keep_split_key(state_folder, split_key) if is_new or split_key else read_split_key(state_folder)
    except OSError as error:
        raise RegistrationError(f"{state_folder} cannot be written: {error.strerror}.") from error
    create_registry(state_folder, settings)
    return Site(state_folder, settings, key)


def open_site(state_folder: Path) -> Site:
    """Return the site a state folder holds.

    Raises:
        RegistrationError: it holds none, or its registry is damaged or of another version.
    """
    with open_registry(state_folder) as database:
        settings = read_settings(database)
    return Site(state_folder, settings, read_split_key(state_folder))


def _images(items: list[Item]) -> int:
    return sum(len(item.rows) for item in items)


def _label_counts(study: Study, selection: Selection) -> dict[str, dict[str, int]]:
    counts = {label: {"patients": 0, "images": 0} for label in study.task.labels}
    for items in selection.patients.values():
        seen: Counter[str] = Counter()
        for item in items:
            for label in _labels_of(study, item):
                seen[label] += len(item.rows)
        for label, images in seen.items():
            counts[label]["patients"] += 1
            counts[label]["images"] += images
    return counts


def _labels_of(study: Study, item: Item) -> list[str]:
    labels = study.task.labels
    if study.task.kind in ("binary", "multiclass"):
        return [labels[int(item.target[0])]]
    if study.task.kind == "multilabel":
        return [label for label, present in zip(labels, item.target, strict=True) if present]
    return list(labels)


def _features_hash(study: Study, encoder: str) -> str:
    preprocessing = study.preprocessing.model_dump(mode="json", exclude={"max_images_per_patient"})
    model = study.model.model_dump(mode="json", exclude={"initial_parameters_sha256"})
    content = {"model": model, "preprocessing": preprocessing, "encoder": encoder}
    return hashlib.sha256(canonical_json(content)).hexdigest()[:32]
