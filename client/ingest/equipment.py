"""What may be said of the equipment: only what is on these lists, because vendors, models and probes are typed in freely.

A vendor or model that is on no list is replaced by a keyed code: devices can still be told apart, and whatever was typed is gone.
"""

import re
from collections.abc import Collection

from echofed.client.ingest.pseudonyms import Pseudonyms, clean_id

VENDORS = {
    "acuson": "Siemens",
    "agfa": "Agfa",
    "aloka": "Aloka",
    "alpinion": "Alpinion",
    "analogic": "Analogic",
    "atl": "ATL",
    "bk": "BK Medical",
    "butterfly": "Butterfly",
    "canon": "Canon",
    "chison": "Chison",
    "clarius": "Clarius",
    "echonous": "EchoNous",
    "edan": "Edan",
    "esaote": "Esaote",
    "fuji": "Fujifilm",
    "fujifilm": "Fujifilm",
    "g.e.": "GE",
    "ge": "GE",
    "hewlett": "Hewlett-Packard",
    "hitachi": "Hitachi",
    "kretz": "GE",
    "kretztechnik": "GE",
    "medison": "Samsung Medison",
    "mindray": "Mindray",
    "philips": "Philips",
    "samsung": "Samsung Medison",
    "siemens": "Siemens",
    "sonoscape": "SonoScape",
    "sonosite": "SonoSite",
    "supersonic": "SuperSonic Imagine",
    "terason": "Terason",
    "toshiba": "Toshiba",
    "ultrasonix": "Ultrasonix",
    "zonare": "Zonare",
}
"""First word of Manufacturer that is on the list, in lower case -> how EchoFed spells the vendor."""

MODEL_WORDS = frozenset(
    """accuvix acclarix acuson aelite affiniti aixplorer alpha antares aplio apogee aplus arietta artida ascendus avius bk5000
    butterfly cypress edge elite envisor epiq ergo eub expert flex fx gps hd hdi hi hs iq iu22 ie33 juniper logiq
    lumify mach maestro max micromaxx mylab nemio noblus omniview p500 plus preirus premium prime prosound pure redwood
    resona s-nerve sc2000 sequoia sonoace sonos sonosite ssa ssd titan touch turbo m-turbo twice ultra ultrasonix v-scan versana
    viamo vision vivid voluson vscan wave xario xp zone zs3 system pro te dc""".split()  # noqa: SIM905 (as words it can be read)
)
"""Words that models are called by, in lower case."""

TRANSDUCER_TYPES = frozenset(
    {
        "SECTOR_PHASED", "SECTOR_MECH", "SECTOR_ANNULAR", "LINEAR", "CURVED LINEAR", "SINGLE CRYSTAL", "SPLIT XTAL CWD",
        "IV_PHASED", "IV_ROT XTAL", "IV_ROT MIRROR", "ENDOCAV_PA", "ENDOCAV_MECH", "ENDOCAV_CLA", "ENDOCAV_AA",
        "ENDOCAV_LINEAR", "VECTOR_PHASED",
    }
)  # fmt: skip
"""Defined terms of Transducer Type (PS3.3, C.8.5.6.1.20)."""

_MODEL_CODE = re.compile(r"(?=.*\d)[A-Z]{0,3}-?\d{1,4}[A-Z]{0,2}", re.ASCII)
_PROBE_CODE = re.compile(r"[A-Z]{1,3}\d{1,2}(?:[-_]\d{1,2})?[A-Za-z]{0,2}", re.ASCII)
_MAX_MODEL_WORDS, _MAX_MODEL_DIGITS = 4, 4
_SHORTEST_PART = 3


def vendor_name(text: str, pseudonyms: Pseudonyms) -> str:
    """Return the vendor as EchoFed spells it, a code for one that is on no list, empty if none is given."""
    if not clean_id(text):
        return ""
    words = re.split(r"[\s,;/_-]+", text.casefold())
    return next((VENDORS[word] for word in words if word in VENDORS), _unlisted(text, pseudonyms))


def model_name(text: str, identifying: Collection[str], pseudonyms: Pseudonyms) -> str:
    """Return the model if each word is on the list or a short code such as CX50, else a code; empty if none is given.

    Args:
        text: ManufacturerModelName.
        identifying: the file's identifying texts; a model that shares a word with one is replaced too.
        pseudonyms: the site's.
    """
    words = clean_id(text).split()
    if not words:
        return ""
    listed = len(words) <= _MAX_MODEL_WORDS and all(
        word.casefold() in MODEL_WORDS or _MODEL_CODE.fullmatch(word) for word in words
    )
    # Ids and dates can be written in groups; digits alone name no model.
    together = "".join(words)
    is_number = together.isdigit() or sum(sign.isdigit() for sign in together) > _MAX_MODEL_DIGITS
    is_kept = listed and not is_number and not _shares(words, identifying)
    return " ".join(words) if is_kept else _unlisted(text, pseudonyms)


def probe_name(text: str, identifying: Collection[str]) -> str:
    """Return the probe if it is written as probes are (C5-1, S5_1, 12L), else nothing; arguments as `model_name`."""
    text = clean_id(text)
    known = _PROBE_CODE.fullmatch(text) or re.fullmatch(r"\d{1,2}[A-Z]{1,2}", text, re.ASCII)
    return text if known and not _shares([text], identifying) else ""


def probe_type(text: str) -> str:
    """Return the transducer's type if it is one of DICOM's defined terms, else nothing."""
    return text if (text := clean_id(text)) in TRANSDUCER_TYPES else ""


def names_a_model(text: str) -> bool:
    """Return whether a text is made of nothing but words and codes of models and vendors, at least one of them listed."""
    words = [word for word in re.split(r"[\s,_/-]+", clean_id(text)) if word]
    listed = [word.casefold() in MODEL_WORDS or word.casefold() in VENDORS for word in words]
    return any(listed) and all(known or _MODEL_CODE.fullmatch(word) for known, word in zip(listed, words, strict=True))


def own_words() -> frozenset[str]:
    """Return, in lower case, the words of these lists: they are no proof of a leak, even where a patient is called so."""
    listed = [*VENDORS, *VENDORS.values(), *MODEL_WORDS, *TRANSDUCER_TYPES]
    return frozenset(
        word for text in listed for word in (text.casefold(), *re.split(r"[\s_-]+", text.casefold())) if word
    )


def _unlisted(text: str, pseudonyms: Pseudonyms) -> str:
    return f"unlisted-{pseudonyms.equipment(text)}"


def _shares(words: Collection[str], identifying: Collection[str]) -> bool:
    """Tell whether a word is also a word of an identifying text, listed words aside: hospitals name rooms after machines."""
    ours = {word.casefold() for word in words} - MODEL_WORDS
    return any(
        part in ours
        for text in identifying
        if not names_a_model(text)
        for part in re.split(r"[\s^=,;/\\]+", text.casefold())
        if len(part) >= _SHORTEST_PART or part == text.casefold()
    )
