"""Phantoms: the physics they claim, the lesions they hold, and the data sets they make."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from echofed.learning.metrics import auc
from echofed.protocol.errors import SitesError, UnknownNameError
from echofed.simulations.phantoms import (
    DESCRIPTORS,
    PROBES,
    VENDORS,
    Anatomy,
    Lesion,
    PhantomSite,
    default_sites,
    draw_anatomy,
    draw_lesion,
    lesion_descriptors,
    phantom_image,
    random_phantoms,
    write_phantom_sites,
)
from echofed.simulations.phantoms.dataset import COLUMNS
from echofed.simulations.phantoms.imaging import point_spread, receive
from echofed.simulations.phantoms.lesions import Plane, signed_distance
from echofed.simulations.phantoms.probes import beam_grid, fit_frame, square_frame
from echofed.simulations.phantoms.speckle import draw_scatterers, form_echoes, round_trip_loss_db, smooth_field
from echofed.simulations.phantoms.tissue import TissueMap

RAYLEIGH_SNR = float(np.sqrt(np.pi / (4 - np.pi)))
CYST = Lesion(
    diameter_mm=12.0,
    aspect=0.8,
    depth_share=0.35,
    irregularity=0.0,
    lobulation=0.0,
    spiculation=0.0,
    edge_mm=0.1,
    echo_db=-35.0,
    heterogeneity_db=1.0,
    attenuation=0.05,
    capsule_db=3.0,
    halo_db=0.0,
    calcifications=0,
    shape_seed=1,
)
SCIRRHOUS = replace(
    CYST, echo_db=-11.0, attenuation=2.0, aspect=1.2, irregularity=0.2, spiculation=0.5, edge_mm=0.6, capsule_db=0.0
)
SMALL_SITES = (
    PhantomSite("north", "aquila", 7, (2, 5), {"benign": 0.6, "malignant": 0.4}, "linear"),
    PhantomSite("south", "dorado", 5, (1, 1), {"benign": 0.2, "malignant": 0.6, "normal": 0.2}, "convex"),
)


def uniform_tissue(shape: tuple[int, ...]) -> TissueMap:
    zeros = np.zeros(shape, np.float32)
    return TissueMap(zeros, zeros.astype(np.complex64), zeros)


def snr(envelope: NDArray[np.float32]) -> float:
    return float(envelope.mean() / envelope.std())


def test_envelope_of_many_scatterers_is_rayleigh() -> None:
    scatterers = draw_scatterers((1, 512, 384), np.random.default_rng(0))
    envelope = np.abs(form_echoes(scatterers, 1.5, np.full(512, 2.0, np.float32)))[0]
    assert snr(envelope) == pytest.approx(RAYLEIGH_SNR, rel=0.05)
    assert np.mean(envelope**2) == pytest.approx(1.0, rel=0.05)
    apart = envelope[::9, ::12].ravel()
    assert stats.kstest(apart, stats.rayleigh(scale=np.sqrt(0.5)).cdf).pvalue > 0.01


def test_the_rayleigh_check_notices_coherent_echoes() -> None:
    scatterers = draw_scatterers((1, 256, 256), np.random.default_rng(0)) + np.complex64(0.3)
    envelope = np.abs(form_echoes(scatterers, 1.5, np.full(256, 2.0, np.float32)))[0]
    assert snr(envelope) > 1.2 * RAYLEIGH_SNR


@pytest.mark.parametrize("looks", [1, 2, 4])
def test_uniform_tissue_has_the_snr_of_its_looks(looks: int) -> None:
    frame = fit_frame(PROBES["linear"], 38.0, 256)
    grid = beam_grid(frame)
    vendor = replace(VENDORS["aquila"], looks=looks, noise_db=-200.0, tgc_share=0.0)
    envelope = receive(uniform_tissue(grid.x_mm.shape), grid, frame, vendor, np.random.default_rng(1))
    assert snr(envelope) == pytest.approx(RAYLEIGH_SNR * np.sqrt(looks), rel=0.05)


def test_point_target_is_as_wide_as_the_beam() -> None:
    lateral = np.linspace(1.0, 3.0, 200).astype(np.float32)
    targets = np.zeros((1, 200, 101), np.complex64)
    targets[0, [40, 160], 50] = 1
    power = np.abs(form_echoes(targets, 2.0, lateral))[0] ** 2
    offset = np.arange(101) - 50
    for row in (40, 160):
        width = np.sqrt(np.sum(power[row] * offset**2) / power[row].sum())
        assert width == pytest.approx(lateral[row] / np.sqrt(2), rel=0.02)


@pytest.mark.parametrize("probe", sorted(PROBES))
def test_beam_is_narrowest_at_the_focus(probe: str) -> None:
    frame = fit_frame(PROBES[probe], 45.0, 512)
    grid = beam_grid(frame)
    _, lateral = point_spread(grid, frame, 5.0)
    width_mm = lateral * grid.spacing_mm
    assert grid.range_mm[width_mm.argmin()] == pytest.approx(0.4 * 45.0, abs=0.5)
    assert width_mm[-1] > 1.3 * width_mm.min()


def test_loss_is_counted_there_and_back() -> None:
    loss_db = round_trip_loss_db(np.full((200, 1), 0.5, np.float32), 0.1, 10.0)
    assert loss_db[-1, 0] == pytest.approx(0.5 * 10 * 2 * 2)


def test_smooth_field_is_standard_and_smooth() -> None:
    axis = np.arange(0, 80, 0.25, dtype=np.float32)
    field = smooth_field(axis, axis, (1.0, 2.0), np.random.default_rng(2))
    assert abs(field.mean()) < 0.1
    assert field.std() == pytest.approx(1.0, abs=0.1)
    assert np.corrcoef(field[:-1].ravel(), field[1:].ravel())[0, 1] > 0.9
    assert abs(np.corrcoef(field[:-40].ravel(), field[40:].ravel())[0, 1]) < 0.1


def test_round_lesion_has_its_diameter() -> None:
    plane = Plane(x_mm=1.0, z_mm=15.0, share=1.0, aspect_factor=1.0, turn_radians=0.0)
    x_mm = np.array([1.0, 1.0 + 6.0, 1.0 + 8.0], np.float32)
    distance, direction = signed_distance(replace(CYST, aspect=1.0), plane, x_mm, np.full(3, 15.0, np.float32))
    np.testing.assert_allclose(distance, [-6.0, 0.0, 2.0], atol=1e-4)
    np.testing.assert_allclose(direction, 0.0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(("benign", "malignant")))
def test_no_lesion_is_larger_than_it_says(seed: int, label: str) -> None:
    generator = np.random.default_rng(seed)
    lesion = draw_lesion(label, generator)
    assert lesion is not None
    frame = fit_frame(PROBES["linear_wide"], 60.0, 128)
    _, mask = phantom_image(frame, draw_anatomy(generator), lesion, VENDORS["aquila"], generator)
    rows, columns = np.nonzero(mask)
    assert rows.size > 0
    extent_mm = (max(np.ptp(rows), np.ptp(columns)) - 1) * frame.pixel_spacing_mm
    assert 0.3 * lesion.diameter_mm < extent_mm < 1.1 * lesion.diameter_mm


def brightness_around(lesion: Lesion, vendor: str, probe: str = "linear") -> tuple[float, float, float, float]:
    """Return the mean grey level inside a lesion, left and right of it, below it, and beside what is below it."""
    frame = fit_frame(PROBES[probe], 40.0, 160)
    totals = np.zeros(4)
    for seed in range(6):
        generator = np.random.default_rng(seed)
        anatomy = Anatomy((0.05, 0.85, 0.02, 0.02), density=1.0, tilt=0.0, attenuation_factor=1.0, sheet_db=-20.0)
        image, mask = phantom_image(frame, anatomy, lesion, VENDORS[vendor], generator)
        rows, columns = np.nonzero(mask)
        middle = slice(int(np.quantile(columns, 0.3)), int(np.quantile(columns, 0.7)))
        beside = np.r_[columns.min() - 20 : columns.min() - 5, columns.max() + 5 : columns.max() + 20]
        beside = beside[(beside >= 10) & (beside < image.shape[1] - 10)]
        level, below = slice(rows.min(), rows.max()), slice(rows.max() + 4, rows.max() + 25)
        totals += [image[mask > 0].mean(), image[level, beside].mean(), image[below, middle].mean(), 0]
        totals[3] += image[below, beside].mean()
    return tuple(totals / 6)


@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_mask_lies_on_a_dark_cyst_with_enhancement_behind(vendor: str) -> None:
    inside, beside, behind, beside_behind = brightness_around(CYST, vendor)
    assert inside < 0.5 * beside
    assert behind > 1.15 * beside_behind


@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_scirrhous_lesion_is_dark_and_throws_a_shadow(vendor: str) -> None:
    inside, beside, behind, beside_behind = brightness_around(SCIRRHOUS, vendor)
    assert inside < 0.8 * beside
    assert behind < 0.8 * beside_behind


def test_outside_the_sector_is_black() -> None:
    frame = fit_frame(PROBES["convex"], 45.0, 160)
    generator = np.random.default_rng(3)
    vendor = replace(VENDORS["borealis"], ruler="none", grey_bar=False)
    image, mask = phantom_image(frame, draw_anatomy(generator), CYST, vendor, generator)
    height, width = frame.shape_px
    half = np.radians(PROBES["convex"].angle_degrees / 2)
    radius = PROBES["convex"].radius_mm
    y, x = (np.mgrid[:height, :width] + 0.5) * frame.pixel_spacing_mm
    x, y = x - width / 2 * frame.pixel_spacing_mm, y + radius * np.cos(half)
    outside = (np.abs(np.arctan2(x, y)) > half) | (np.hypot(x, y) < radius) | (np.hypot(x, y) > radius + 45.0)
    assert outside.mean() > 0.15
    assert not image[outside].any()
    assert not mask[outside].any()
    assert image[~outside].mean() > 20


@pytest.mark.parametrize("probe", sorted(PROBES))
def test_frame_shows_all_the_probe_sees(probe: str) -> None:
    frame = fit_frame(PROBES[probe], 44.0, 150)
    assert max(frame.shape_px) == 150
    if PROBES[probe].shape == "linear":
        assert frame.shape_px[0] * frame.pixel_spacing_mm == pytest.approx(44.0, rel=0.01)
        assert frame.shape_px[1] * frame.pixel_spacing_mm == pytest.approx(PROBES[probe].width_mm, rel=0.01)


def test_vendors_look_different() -> None:
    frame = square_frame(PROBES["linear"], 38.0, 96)
    looks = {}
    for name, vendor in VENDORS.items():
        plain = replace(vendor, ruler="none", grey_bar=False)
        features = []
        for seed in range(12):
            generator = np.random.default_rng(seed)
            image, _ = phantom_image(frame, draw_anatomy(generator), None, plain, generator)
            levels = image / 255.0
            features.append([levels.mean(), levels.std(), np.abs(np.diff(levels, axis=0)).mean() / levels.mean()])
        looks[name] = np.array(features)
    spread = np.concatenate(list(looks.values())).std(axis=0)
    # Leave one out: each image goes to the vendor whose other images it is nearest to on average.
    hits = []
    for name, features in looks.items():
        for index, image_features in enumerate(features):
            means = {n: np.delete(f, index, axis=0).mean(axis=0) for n, f in looks.items()}
            nearest = min(means, key=lambda n: float(np.linalg.norm((means[n] - image_features) / spread)))
            hits.append(nearest == name)
    assert np.mean(hits) > 2 / len(VENDORS)


def test_images_of_one_patient_differ_and_show_one_lesion() -> None:
    frame = fit_frame(PROBES["linear"], 40.0, 128)
    generator = np.random.default_rng(4)
    anatomy = draw_anatomy(generator)
    first, first_mask = phantom_image(frame, anatomy, CYST, VENDORS["aquila"], generator)
    second, second_mask = phantom_image(frame, anatomy, CYST, VENDORS["aquila"], generator)
    assert np.mean(first != second) > 0.5
    assert 0.4 < first_mask.mean() / second_mask.mean() < 2.5


def test_calipers_mark_the_ends_of_the_lesion() -> None:
    frame = fit_frame(PROBES["linear"], 40.0, 128)
    images = [
        phantom_image(
            frame, Anatomy((0.2, 0.4, 0.1, 0.2), 0.5, 0.0, 1.0, 0.0), CYST, VENDORS["aquila"], generator, calipers=on
        )
        for on, generator in ((False, np.random.default_rng(5)), (True, np.random.default_rng(5)))
    ]
    changed = np.argwhere(images[0][0] != images[1][0])
    rows, columns = np.nonzero(images[0][1])
    assert 20 < len(changed) <= 4 * 9
    assert changed[:, 1].min() == columns.min() - 2
    assert changed[:, 0].max() == rows.max() + 2


def test_normal_breast_has_no_lesion() -> None:
    generator = np.random.default_rng(6)
    assert draw_lesion("normal", generator) is None
    assert set(lesion_descriptors(None).values()) == {0}
    frame = fit_frame(PROBES["linear"], 40.0, 96)
    image, mask = phantom_image(frame, draw_anatomy(generator), None, VENDORS["fornax"], generator, calipers=True)
    assert image.any()
    assert not mask.any()


def suspicion_auc(ambiguity: float) -> float:
    """Return how well the number of suspicious descriptors tells 600 malignant from 600 benign lesions."""
    generator = np.random.default_rng(7)
    suspicious = ("irregular_shape", "not_circumscribed", "spiculated", "taller_than_wide", "shadowing", "halo")
    scores, positive = [], []
    for label in ("benign", "malignant"):
        for _ in range(600):
            ticks = lesion_descriptors(draw_lesion(label, generator, ambiguity))
            scores.append(sum(ticks[name] for name in suspicious))
            positive.append(label == "malignant")
    value = auc(np.array(scores, np.float64), np.array(positive))
    assert value is not None
    return value


def test_ambiguity_sets_how_far_the_labels_overlap() -> None:
    assert 0.87 < suspicion_auc(0.1) < 0.985
    assert suspicion_auc(0.6) < suspicion_auc(0.1) - 0.08
    assert suspicion_auc(1.0) == pytest.approx(0.5, abs=0.05)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom_sites(tmp_path_factory.mktemp("phantoms"), SMALL_SITES, seed=11, image_size_px=(64, 96))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_index_is_complete_and_true(folders: list[Path]) -> None:
    assert [folder.name for folder in folders] == ["north", "south"]
    for folder, site in zip(folders, SMALL_SITES, strict=True):
        rows = rows_of(folder)
        assert tuple(rows[0]) == COLUMNS
        assert {row["centre"] for row in rows} == {site.name}
        assert len({row["file"] for row in rows}) == len(rows) == len(list((folder / "images").iterdir()))
        for row in rows:
            with Image.open(folder / row["file"]) as image, Image.open(folder / row["mask"]) as mask:
                levels = set(np.unique(np.asarray(mask)).tolist())
                assert image.mode == mask.mode == "L"
                assert image.size == mask.size
            assert 64 <= max(image.size) <= 96
            assert levels == ({0} if row["label"] == "normal" else {0, 255})
            assert all(row[name] in ("0", "1") for name in DESCRIPTORS)
            assert (float(row["size_mm"]) > 0) == (row["label"] != "normal")
            assert 0.2 < float(row["pixel_spacing_mm"]) < 1.2
            assert row["exam_id"].startswith(row["patient_id"] + "_e")


def test_what_belongs_to_the_patient_is_the_same_in_all_rows(folders: list[Path]) -> None:
    for folder, site in zip(folders, SMALL_SITES, strict=True):
        patients: dict[str, list[dict[str, str]]] = {}
        for row in rows_of(folder):
            patients.setdefault(row["patient_id"], []).append(row)
        assert len(patients) == site.patients
        for rows in patients.values():
            assert site.images_per_patient[0] <= len(rows) <= site.images_per_patient[1]
            for column in ("label", "size_mm", *DESCRIPTORS):
                assert len({row[column] for row in rows}) == 1
            assert len({row["exam_id"] for row in rows}) == (2 if len(rows) >= 4 else 1)


def test_label_proportions_hold_by_patient(folders: list[Path]) -> None:
    counts = []
    for folder in folders:
        labels = {row["patient_id"]: row["label"] for row in rows_of(folder)}
        counts.append({label: list(labels.values()).count(label) for label in sorted(set(labels.values()))})
    assert counts == [{"benign": 4, "malignant": 3}, {"benign": 1, "malignant": 3, "normal": 1}]


def test_same_seed_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    again = write_phantom_sites(tmp_path / "again", SMALL_SITES, seed=11, image_size_px=(64, 96))
    assert [digest(folder) for folder in again] == [digest(folder) for folder in folders]
    first_only = write_phantom_sites(tmp_path / "first", SMALL_SITES[:1], seed=11, image_size_px=(64, 96))
    assert digest(first_only[0]) == digest(folders[0])


def test_other_seed_other_images(folders: list[Path], tmp_path: Path) -> None:
    other = write_phantom_sites(tmp_path, SMALL_SITES[:1], seed=12, image_size_px=(64, 96))
    assert not set(digest(other[0] / "images").values()) & set(digest(folders[0] / "images").values())


def test_progress_counts_patients(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    site = replace(SMALL_SITES[1], patients=3)
    write_phantom_sites(tmp_path, [site], seed=0, image_size_px=(48, 48), progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_default_sites_are_skewed() -> None:
    sites = default_sites(5, 40)
    assert len({site.vendor for site in sites}) == 5
    assert len({site.label_proportions["malignant"] for site in sites}) == 5
    assert {site.probe for site in sites} == set(PROBES)
    assert min(site.patients for site in sites) <= 20 < 60 <= max(site.patients for site in sites)
    assert sum(site.patients for site in sites) == 200
    assert len({site.name for site in default_sites(12, 3)}) == 12


def test_random_phantoms_do_not_depend_on_how_many() -> None:
    images = random_phantoms(6, 48, seed=5)
    assert images.shape == (6, 48, 48)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:2], random_phantoms(2, 48, seed=5))
    assert len({image.tobytes() for image in (*images, *random_phantoms(6, 48, seed=6))}) == 12
    assert all(image.std() > 10 for image in images)
    assert random_phantoms(0, 48, seed=0).shape == (0, 48, 48)


@pytest.mark.parametrize(
    "change",
    [
        {"patients": 0},
        {"images_per_patient": (0, 2)},
        {"images_per_patient": (3, 2)},
        {"label_proportions": {"benign": 0.6, "malignant": 0.6}},
        {"label_proportions": {"benign": 1.5, "malignant": -0.5}},
        {"label_proportions": {}},
        {"label_proportions": {"cyst": 1.0}},
        {"ambiguity": 1.5},
        {"name": "../north"},
        {"name": ".."},
        {"name": ""},
    ],
)
def test_impossible_sites_are_refused_before_anything_is_written(change: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(SitesError):
        write_phantom_sites(tmp_path, [replace(SMALL_SITES[0], **change)], seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"vendor": "nobody"}, {"probe": "nothing"}])
def test_unknown_names_are_refused(change: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="choose from"):
        write_phantom_sites(tmp_path, [replace(SMALL_SITES[0], **change)], seed=0)


def test_doubled_names_and_tiny_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SitesError, match="same name"):
        write_phantom_sites(tmp_path, [SMALL_SITES[0], SMALL_SITES[0]], seed=0)
    with pytest.raises(SitesError, match="too small"):
        write_phantom_sites(tmp_path, SMALL_SITES, seed=0, image_size_px=(16, 16))
    with pytest.raises(SitesError, match="too small"):
        random_phantoms(1, 16, seed=0)
    with pytest.raises(SitesError):
        default_sites(0, 10)
    with pytest.raises(SitesError):
        draw_lesion("benign", np.random.default_rng(0), ambiguity=-0.1)
    assert not list(tmp_path.iterdir())
