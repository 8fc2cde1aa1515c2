"""Fingerprints to read out over the telephone: words that English and French share, no two alike."""

import hashlib

_TEXT = """
action agenda album alibi angle animal antenna aquarium aroma atlas atoll avenue avocado ballet bamboo banana
bermuda bikini bingo biscuit bonbon bouquet bravo bronze brunch budget bungalow cabaret cactus calcium camera
canal capital caramel cascade chalet cinema cobra concert copilot cosmos coupon curry data dentist dessert
diesel disco domino double dragon dune duplex dynamo echo elixir empire enigma episode espresso essence expert
falafel fauna festival figure film fjord flamingo folio football gamma gazelle geranium geyser giraffe glucose
golf gospel hamster handball helium hibiscus hockey horizon hotel hydra iceberg igloo iguana image instant iris
jackpot jaguar jargon jazz jeans jeep jersey jogging joker journal judo karaoke kayak kebab kendo kimono kiosk
kiwi koala label lambda lemming leopard liquid logo lotus lynx macaroni maestro magnolia mandarin maraca mascara
matador maximum melon message module moment mosquito mustang neptune neutron nickel ninja nirvana nougat nova
oasis octave olive omega omnibus onyx oracle oregano orient oxygen ozone paella palace panda papaya paradox
pastel patio pelican pesto petunia phoenix piccolo pigeon pixel pizza plateau poncho prairie prince puzzle
pyjama pyramid python quadrant question radar ravioli reflex regatta reptile ricotta riviera robot rugby safari
salsa sandwich sardine saturn scalpel science scooter secret sequoia serenade shampoo simple sitar slalom slogan
sonata sorbet souffle spectrum sphinx spiral sport square standard steak studio style surf sushi tandem tapioca
tarot tattoo tempo tennis tequila theatre tiramisu toboggan tofu tonic topaz tornado toucan transit triangle
trombone tulip tunnel ultra unique variable velcro victor video villa vinyl violet voyage western wigwam yacht
yeti zenith zephyr zero zigzag zinc zoom
"""
WORDS = tuple(_TEXT.split())
"""256 words; any two differ within their first three letters, and by three letters or more."""
FINGERPRINT_WORDS = 8

_DOMAIN = b"echofed fingerprint 1"


def fingerprint_words(content: bytes) -> str:
    """Return eight words that stand for a content; another content has other words.

    The eight words hold 64 bits. Each attempt to find a second content with the same words costs one scrypt (32 MiB,
    about a tenth of a second), which puts it out of reach for as long as an invitation is valid.

    Reference: Percival and Josefsson (2016), RFC 7914.
    """
    digest = hashlib.scrypt(
        hashlib.sha256(content).digest(), salt=_DOMAIN, n=2**15, r=8, p=1, maxmem=2**26, dklen=FINGERPRINT_WORDS
    )
    return " ".join(WORDS[byte] for byte in digest)


def same_words(heard: str, shown: str) -> bool:
    """Return whether words that someone typed are those shown; case, commas, dashes and line breaks do not matter."""
    return _letters(heard) == _letters(shown)


def _letters(words: str) -> list[str]:
    return "".join(character if character.isalpha() else " " for character in words.lower()).split()
