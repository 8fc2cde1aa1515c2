"""Makes up secrets, one for each value representation of DICOM, and notes what was planted where."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Secret:
    """A planted text.

    Args:
        place: the sort of place it lies in, such as "private element".
        where: the element.
        text: as a person reads it.
        content: its bytes in the file.
    """

    place: str
    where: str
    text: str
    content: bytes


_SYLLABLES = re.findall("..", "babebodadodufefigagokakekolalolumamimonanenopaporarerosasotatetovavozazozu")
BINARY = {"AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "UL", "UN", "US", "UV"}


class Planter:
    """Makes secrets and notes them.

    Args:
        seed: of everything that is made up.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._used: set[str] = set()
        self.secrets: list[Secret] = []

    def plant(self, place: str, where: str, vr: str) -> Any:
        """Return a value that holds a secret, for a value representation."""
        text = self._fresh(vr)
        self.note(place, where, text, text.encode("ascii"))
        if vr in BINARY:
            return text.encode("ascii")
        return f"Seen by {text} on Monday" if vr in ("LT", "UT") else text

    def note(self, place: str, where: str, text: str, content: bytes) -> None:
        """Note a secret that was made elsewhere."""
        self.secrets.append(Secret(place, where, text, content))

    def word(self) -> str:
        """Return a made-up surname."""
        return "".join(self._random.choice(_SYLLABLES) for _ in range(5)).capitalize()

    def _fresh(self, vr: str) -> str:
        while (text := self._make(vr)) in self._used:
            continue
        self._used.add(text)
        return text

    def _make(self, vr: str) -> str:
        draw = self._random.randrange
        day = f"{draw(1921, 1990)}{draw(1, 13):02}{draw(1, 29):02}"
        made: dict[str, Callable[[], str]] = {
            "PN": lambda: f"{self.word()}^{self.word()}",
            "DA": lambda: day,
            "DT": lambda: f"{day}{draw(24):02}{draw(60):02}{draw(60):02}.{draw(10**6):06}",
            "TM": lambda: f"{draw(24):02}{draw(60):02}{draw(60):02}.{draw(10**6):06}",
            "IS": lambda: f"{draw(10**8, 2 * 10**9)}",
            "DS": lambda: f"{draw(10**4, 10**5)}.{draw(10**5, 10**6)}",
            "UI": lambda: f"1.2.276.0.{draw(10**4, 10**5)}.{day}.{draw(10**6, 10**7)}",
            "UR": lambda: f"https://pacs.example/{self.word().lower()}/{draw(10**6, 10**7)}",
            "SH": lambda: f"{self.word()[:6].upper()}-{draw(10**6, 10**7)}",
            "AE": lambda: f"{self.word()[:6].upper()}_{draw(10**6, 10**7)}",
            "CS": lambda: f"{self.word()} {draw(10**3, 10**4)}",
            "AS": lambda: f"{self.word()}",
        }
        if vr in BINARY:
            return (self.word().upper() + str(draw(10**7, 10**8)))[:16].ljust(16, "X")  # whole numbers of any width
        return made.get(vr, lambda: f"{self.word()} {draw(10**6, 10**7)}")()
