"""One phantom image, from tissue to grey levels."""

import numpy as np
from scipy import ndimage

from echofed.simulations.phantoms.lesions import Lesion, draw_plane, insert_lesion
from echofed.simulations.phantoms.probes import BeamGrid, Frame, beam_grid, scan_convert
from echofed.simulations.phantoms.speckle import (
    Floats,
    decibels_to_amplitude,
    draw_scatterers,
    form_echoes,
    round_trip_loss_db,
)
from echofed.simulations.phantoms.tissue import Anatomy, TissueMap, draw_tissue
from echofed.simulations.phantoms.vendors import Pixels, Vendor, annotate, filter_picture, grey_map, mark_calipers

SPEED_OF_SOUND_MM_PER_US = 1.54
USUAL_ATTENUATION = 0.7
"""What a scanner's time-gain compensation assumes, dB/cm/MHz one way."""
MAX_TGC_DB = 55.0


def phantom_image(
    frame: Frame,
    anatomy: Anatomy,
    lesion: Lesion | None,
    vendor: Vendor,
    generator: np.random.Generator,
    *,
    calipers: bool = False,
) -> tuple[Pixels, Pixels]:
    """Return a B-mode image and the mask of its lesion.

    The plane through the lesion, the scatterers and the operator's gain are drawn from the generator, so calls
    with the same patient give different images of one lesion. Outside a sector the image is 0.

    Args:
        frame: probe, depth and pixels.
        anatomy: the patient's breast.
        lesion: the patient's lesion, or None.
        vendor: the scanner's look.
        generator: source of everything random.
        calipers: mark the lesion's width and height with crosses.

    Returns:
        image, uint8 of `frame.shape_px`; mask, 255 in the lesion and 0 elsewhere, same dtype and shape.

    Reference: Szabo (2014), attenuation, beams, envelope detection and log compression.
    """
    grid = beam_grid(frame)
    tissue = draw_tissue(anatomy, grid, frame.depth_mm, generator)
    mask = np.zeros(frame.shape_px, np.uint8)
    if lesion is not None:
        width_mm = float(np.ptp(grid.lateral_mm))
        plane = draw_plane(lesion, frame.depth_mm, width_mm, generator)
        tissue, outline_mm = insert_lesion(tissue, lesion, plane, grid, generator)
        mask[scan_convert(outline_mm, frame, outside=np.inf) < 0] = 255
    envelope = receive(tissue, grid, frame, vendor, generator)
    brightness = grey_map(envelope, vendor, float(generator.normal(0, 2.5)))
    picture = scan_convert(brightness, frame, outside=0.0)
    seen = scan_convert(np.ones_like(brightness), frame, outside=0.0) > 0
    image = (filter_picture(picture, vendor) * seen * 255).round().astype(np.uint8)
    annotate(image, vendor, frame.pixel_spacing_mm)
    if calipers:
        mark_calipers(image, mask)
    return image, mask


def receive(tissue: TissueMap, grid: BeamGrid, frame: Frame, vendor: Vendor, generator: np.random.Generator) -> Floats:
    """Return the envelope after time-gain compensation, noise included, averaged over the vendor's looks.

    Args:
        tissue: what the sound meets.
        grid: where the beams are sampled.
        frame: gives probe and pixels.
        vendor: gives frequency, looks, compensation and noise.
        generator: source of scatterers and noise.

    Returns:
        float32 [depth samples, lines]; 1 is the root-mean-square echo of fibroglandular tissue at the surface.
    """
    frequency_mhz = frame.probe.frequency_mhz * vendor.frequency_factor
    loss_db = round_trip_loss_db(tissue.attenuation, grid.step_mm, frequency_mhz)
    # Beams steered for compounding and of finite width see shadows blurred.
    loss_db = ndimage.gaussian_filter1d(loss_db, 0.5 / frame.pixel_spacing_mm, axis=1, mode="nearest", truncate=3.0)
    usual_db = vendor.tgc_share * USUAL_ATTENUATION * 2 * frequency_mhz * grid.range_mm[:, None] / 10
    tgc_db = np.minimum(usual_db, MAX_TGC_DB).astype(np.float32)
    received = decibels_to_amplitude(tgc_db - loss_db)
    scatter = decibels_to_amplitude(tissue.echo_db) * received
    coherent = tissue.sheets * received
    # Averaging the looks also averages the noise; one draw of the average stands for all.
    noise_db = tgc_db + np.float32(vendor.noise_db - 10 * np.log10(vendor.looks))
    noise = decibels_to_amplitude(noise_db) * draw_scatterers(scatter.shape, generator)
    axial, lateral = point_spread(grid, frame, frequency_mhz)
    reflectivity = draw_scatterers((vendor.looks, *scatter.shape), generator)
    reflectivity *= scatter
    reflectivity += coherent
    looks = np.abs(form_echoes(reflectivity, axial, lateral) + noise)
    return np.asarray(looks.mean(axis=0), np.float32)


def point_spread(grid: BeamGrid, frame: Frame, frequency_mhz: float) -> tuple[float, Floats]:
    """Return the standard deviations of pulse (samples) and beam at each depth (lines, float32 [depth samples]).

    The pulse lasts about one and a half wavelengths. The beam is Gaussian: as wide as wavelength times f-number at
    the focus (0.4 of the depth) and wider away from it. Neither is finer than the sampling can carry.

    Reference: Szabo (2014), Gaussian beams.
    """
    wavelength_mm = SPEED_OF_SOUND_MM_PER_US / frequency_mhz
    axial = max(1.5 * wavelength_mm / 2.355 / grid.step_mm, 0.8)
    waist_mm = wavelength_mm * frame.probe.f_number / 2.355 * 1.2
    focus_mm = 0.4 * frame.depth_mm
    spread = np.sqrt(1 + ((grid.range_mm - focus_mm) / (0.5 * frame.depth_mm)) ** 2)
    return axial, np.asarray(np.maximum(waist_mm * spread / grid.spacing_mm, 0.8), np.float32)
