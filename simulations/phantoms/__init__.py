"""B-mode ultrasound phantoms: believable images with known lesions, so that nothing needs patients to be tried."""

from echofed.simulations.phantoms.dataset import (
    default_sites,
    random_phantoms,
    write_phantom_sites,
)
from echofed.simulations.phantoms.imaging import phantom_image
from echofed.simulations.phantoms.lesions import DESCRIPTORS, Lesion, draw_lesion, lesion_descriptors
from echofed.simulations.phantoms.patients import PhantomSite
from echofed.simulations.phantoms.probes import PROBES, Frame, Probe
from echofed.simulations.phantoms.tissue import Anatomy, draw_anatomy
from echofed.simulations.phantoms.vendors import VENDORS, Vendor

__all__ = [
    "DESCRIPTORS",
    "PROBES",
    "VENDORS",
    "Anatomy",
    "Frame",
    "Lesion",
    "PhantomSite",
    "Probe",
    "Vendor",
    "default_sites",
    "draw_anatomy",
    "draw_lesion",
    "lesion_descriptors",
    "phantom_image",
    "random_phantoms",
    "write_phantom_sites",
]
