"""What was ingested, by device and label, and what is doubtful about it; it stays on the site.

The report holds numbers only: no patient, exam or file is named in its JSON or its page.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from echofed.client.duplicates import near_pairs, thumbnail
from echofed.client.ingest.encryption import store_key
from echofed.client.ingest.errors import FrameStoreError
from echofed.client.ingest.frame_store import read_frame
from echofed.client.ingest.labels import LabelCounts
from echofed.client.ingest.quality import FrameFacts

BINS = 16
NO_LABEL = "no label"
NO_DEVICE = "unknown device"
_PAIRS_NAMED = 10
_TEXT_WIDTH = 30


@dataclass(frozen=True)
class Spread:
    """A measured value over some frames: least, quarter, middle, three quarters, most."""

    least: float
    quarter: float
    middle: float
    three_quarters: float
    most: float


@dataclass(frozen=True)
class GroupQuality:
    """What is known of the frames of one device and label, or of all of a device.

    Args:
        device: vendor and model.
        label: None: of all labels.
        patients, exams, clips, frames: how many.
        sizes: frames by "height x width".
        spacing_mm, brightness, clipped_share, sharpness: over the frames; spacing None if no frame has one.
        brightness_bins: frames by brightness, 16 equal steps from 0 to 256.
        without_spacing, without_label, frozen, empty, uniform: frames.
    """

    device: str
    label: str | None
    patients: int
    exams: int
    clips: int
    frames: int
    sizes: dict[str, int]
    spacing_mm: Spread | None
    brightness: Spread
    brightness_bins: tuple[int, ...]
    clipped_share: Spread
    sharpness: Spread
    without_spacing: int
    without_label: int
    frozen: int
    empty: int
    uniform: int


@dataclass(frozen=True)
class QualityReport:
    """The whole report.

    Args:
        patients, exams, clips, frames: how many.
        devices: one group a device, the largest first.
        groups: one a device and label.
        label_patients: patients by label; a patient counts under each of its labels.
        label_frames: frames by label.
        same_frames: groups of equal frames under several patients.
        near_frames: further pairs of frames under several patients that look the same.
        repeated_frames: frames that equal an earlier one of the same patient.
        quarantined: instances not accepted, by reason.
        labels: how labels and exams met, None if it was not counted.
        pairs: files of some of the frames that several patients share, for the site's eyes; not part of `to_json`.
    """

    patients: int
    exams: int
    clips: int
    frames: int
    devices: tuple[GroupQuality, ...]
    groups: tuple[GroupQuality, ...]
    label_patients: dict[str, int]
    label_frames: dict[str, int]
    same_frames: int
    near_frames: int
    repeated_frames: int
    quarantined: dict[str, int]
    labels: LabelCounts | None
    pairs: tuple[tuple[str, str], ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, without a file's name."""
        content = asdict(self)
        del content["pairs"]
        return content

    def text(self) -> str:
        """Return the report as plain text."""
        lines = [f"{self.frames:,} frames of {self.clips:,} clips, {self.exams:,} exams, {self.patients:,} patients."]
        for device in self.devices:
            lines += _device_lines(device, [group for group in self.groups if group.device == device.device])
        lines += _table("Patients by label:", self.label_patients)
        lines += _table("Doubtful:", self.doubts())
        lines += [f"  {first} = {second}" for first, second in self.pairs]
        lines += _table("Exams and labels:", {} if self.labels is None else label_counts(self.labels))
        lines += _table("Not accepted:", self.quarantined)
        return "\n".join(lines)

    def doubts(self) -> dict[str, int]:
        """Return what is doubtful, by kind; only kinds that occur."""
        sums = {name: sum(getattr(one, name) for one in self.devices) for name in ("frozen", "empty", "uniform")}
        found = {
            "equal frames under several patients": self.same_frames,
            "pairs of nearly equal frames under several patients": self.near_frames,
            "frames repeated within a patient": self.repeated_frames,
            "frames of frozen clips": sums["frozen"],
            "empty frames": sums["empty"],
            "frames as even as a phantom": sums["uniform"],
            "frames without pixel spacing": sum(one.without_spacing for one in self.devices),
            "frames without label": sum(one.without_label for one in self.devices),
            "frames of an unknown device": sum(one.frames for one in self.devices if one.device == NO_DEVICE),
        }
        return {name: count for name, count in found.items() if count}


def quality_report(
    frames: Iterable[FrameFacts],
    quarantined: Mapping[str, int],
    labels: LabelCounts | None = None,
    folder: Path | None = None,
) -> QualityReport:
    """Return the quality of what was ingested.

    Args:
        frames: all stored frames.
        quarantined: instances not accepted, by reason.
        labels: how labels and exams met.
        folder: the ingest's; frames that look the same by their hash are compared by what is stored there. None: the hash
            alone decides, which takes more frames for the same than are.

    Raises:
        KeyFileError: the stored frames are encrypted, and the key cannot be had.
    """
    facts = sorted(frames, key=lambda one: (one.patient, one.exam, one.file))
    by_device: defaultdict[str, list[FrameFacts]] = defaultdict(list)
    by_group: defaultdict[tuple[str, str], list[FrameFacts]] = defaultdict(list)
    for one in facts:
        device = one.device or NO_DEVICE
        by_device[device].append(one)
        by_group[device, one.label or NO_LABEL].append(one)
    same, repeated = _same_frames(facts)
    near = _near_frames(facts, folder)
    devices = [_group(device, None, group) for device, group in by_device.items()]
    return QualityReport(
        patients=len({one.patient for one in facts}),
        exams=len({one.exam for one in facts}),
        clips=len({one.clip for one in facts}),
        frames=len(facts),
        devices=tuple(sorted(devices, key=lambda one: (-one.frames, one.device))),
        groups=tuple(_group(device, label, group) for (device, label), group in sorted(by_group.items())),
        label_patients=_counts(label for label, _ in {(one.label or NO_LABEL, one.patient) for one in facts}),
        label_frames=_counts(one.label or NO_LABEL for one in facts),
        same_frames=len(same),
        near_frames=len(near),
        repeated_frames=repeated,
        quarantined=_counts(Counter(dict(quarantined)).elements()),
        labels=labels,
        pairs=tuple([*same, *near][:_PAIRS_NAMED]),
    )


def label_counts(counts: LabelCounts) -> dict[str, int]:
    """Return the counts of labels by what they count."""
    return {
        "exams labelled": counts.labelled,
        "exams without label": counts.unlabelled,
        "exams whose labels disagree": counts.contradictory,
        "rows of no exam here": counts.unused_rows,
        "rows without a label": counts.rows_without_label,
    }


def _group(device: str, label: str | None, frames: Sequence[FrameFacts]) -> GroupQuality:
    spacings = [one.spacing_mm[0] for one in frames if one.spacing_mm is not None]
    measures = [one.measures for one in frames]
    brightness = np.array([one.mean_brightness for one in measures])
    return GroupQuality(
        device=device,
        label=label,
        patients=len({one.patient for one in frames}),
        exams=len({one.exam for one in frames}),
        clips=len({one.clip for one in frames}),
        frames=len(frames),
        sizes=_counts(f"{one.height} x {one.width}" for one in measures),
        spacing_mm=_spread(spacings) if spacings else None,
        brightness=_spread(brightness),
        brightness_bins=tuple(np.bincount((brightness / 256 * BINS).astype(int), minlength=BINS).tolist()),
        clipped_share=_spread([one.clipped_share for one in measures]),
        sharpness=_spread([one.sharpness for one in measures]),
        without_spacing=len(frames) - len(spacings),
        without_label=sum(not one.label for one in frames),
        frozen=sum(one.is_frozen for one in frames),
        empty=sum(one.look == "empty" for one in measures),
        uniform=sum(one.look == "uniform" for one in measures),
    )


def _spread(values: "Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]") -> Spread:
    return Spread(*(round(float(one), 5) for one in np.quantile(np.asarray(values), (0, 0.25, 0.5, 0.75, 1))))


def _same_frames(facts: Sequence[FrameFacts]) -> tuple[list[tuple[str, str]], int]:
    """Return two files of each group of equal frames under several patients, and how many frames repeat within one patient."""
    owners: defaultdict[str, list[FrameFacts]] = defaultdict(list)
    for one in facts:
        owners[one.measures.pixel_key].append(one)
    shared = []
    repeated = 0
    for group in owners.values():
        other = next((one for one in group if one.patient != group[0].patient), None)
        if other is not None:
            shared.append((group[0].file, other.file))
        repeated += len(group) - len({one.patient for one in group})
    return shared, repeated


def _near_frames(facts: Sequence[FrameFacts], folder: Path | None) -> list[tuple[str, str]]:
    # Of frames of a patient with one hash, as a clip has many, the first stands for all.
    firsts: dict[tuple[str, int], FrameFacts] = {}
    for one in facts:
        firsts.setdefault((one.patient, one.measures.looks), one)
    ones = list(firsts.values())
    seen: Sequence[bytes] = [_ANY] * len(ones) if folder is None else _Thumbnails(folder, [one.file for one in ones])
    pairs = near_pairs([one.measures.looks for one in ones], seen)
    return [
        (ones[first].file, ones[second].file)
        for first, second in pairs.tolist()
        if ones[first].patient != ones[second].patient
        and ones[first].measures.pixel_key != ones[second].measures.pixel_key
    ]


_ANY = bytes(range(256)) * 4
"""A thumbnail that correlates with itself: where the hash alone decides."""


class _Thumbnails(Sequence[bytes]):
    """Thumbnails of stored frames, made when asked for; of a damaged frame a black one, which looks like nothing."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self._folder, self._files, self._key = folder, files, store_key(folder)
        self._made: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        if at not in self._made:
            self._made[at] = self._make(self._folder / self._files[at])
        return self._made[at]

    def _make(self, path: Path) -> bytes:
        try:
            return thumbnail(read_frame(path, self._key)[0]).tobytes()
        except FrameStoreError:
            return bytes(len(_ANY))


def _counts(names: Iterable[str]) -> dict[str, int]:
    """Return how often each name occurs, the most frequent first."""
    return dict(sorted(Counter(map(str, names)).items(), key=lambda entry: (-entry[1], entry[0])))


def _device_lines(device: GroupQuality, groups: Sequence[GroupQuality]) -> list[str]:
    spacing = "unknown" if device.spacing_mm is None else f"{device.spacing_mm.middle:.3f} mm"
    sizes = ", ".join(f"{size} ({count:,})" for size, count in list(device.sizes.items())[:3])
    labels = ", ".join(f"{group.label} {group.frames:,}" for group in groups)
    return [
        f"{device.device}: {device.frames:,} frames of {device.patients:,} patients",
        f"  {'sizes':<{_TEXT_WIDTH}}{sizes}{', ...' if len(device.sizes) > 3 else ''}",
        f"  {'pixel spacing, median':<{_TEXT_WIDTH}}{spacing}",
        f"  {'brightness, median':<{_TEXT_WIDTH}}{device.brightness.middle:.0f} of 255",
        f"  {'clipped, median and most':<{_TEXT_WIDTH}}{device.clipped_share.middle:.1%}, {device.clipped_share.most:.1%}",
        f"  {'sharpness, median':<{_TEXT_WIDTH}}{device.sharpness.middle:.0f}",
        f"  {'labels':<{_TEXT_WIDTH}}{labels}",
    ]


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    return [title, *(f"  {count:>7,}  {name}" for name, count in counts.items())] if counts else []
