"""Invented people and hospitals for the headers and banners of phantoms; nobody of these names is meant."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np


@dataclass(frozen=True)
class Names:
    """Family and given names of one script; `written` gives each as the screen shows it, in Latin letters."""

    character_set: tuple[str, ...]
    family: tuple[tuple[str, str], ...]
    given: tuple[tuple[str, str], ...]


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


NAMES: tuple[Names, ...] = (
    Names(
        ("ISO_IR 6",),
        _same("Quillfeather", "Marlowick", "Penhollow", "Tressider", "Oakhanger", "Vantongeren", "Brackwater"),
        _same("Imogen", "Beatrix", "Rosalind", "Winifred", "Philippa", "Constance", "Maribel"),
    ),
    Names(
        ("ISO_IR 100",),
        _same("Müßighaus", "Fernández-Ordóñez", "Lefèvrelle", "Grønskov", "Håkansdotter", "Peçanha-Sólis"),
        _same("Zoë", "Jürgena", "Françoise", "Åsa", "Inês", "Mônica"),
    ),
    Names(
        ("ISO_IR 192",),
        _same("Wójcikówna", "Šimkovičová", "Özgündüz", "Nguyễn-Thị", "Kőszegváry"),
        _same("Małgorzata", "Žofie", "Çiğdem", "Đào", "Erzsébet"),
    ),
    Names(
        ("ISO_IR 144",),
        (("Светозарова", "Svetozarova"), ("Белоручкина", "Beloruchkina"), ("Тихомирская", "Tikhomirskaya")),
        (("Аглая", "Aglaya"), ("Зинаида", "Zinaida"), ("Лукерья", "Lukerya")),
    ),
    Names(
        ("ISO_IR 126",),
        (("Παπαδοπετράκη", "Papadopetraki"), ("Καλλιγέρη", "Kalligeri")),
        (("Ευδοκία", "Evdokia"), ("Πηνελόπη", "Pinelopi")),
    ),
    Names(
        ("", "ISO 2022 IR 87"),
        (("山野井", "Yamanoi"), ("鶴ヶ島", "Tsurugashima"), ("雪下", "Yukishita")),
        (("花枝", "Hanae"), ("千代美", "Chiyomi"), ("小夜子", "Sayoko")),
    ),
    Names(
        ("", "ISO 2022 IR 149"),
        (("독고", "Dokgo"), ("선우", "Seonwoo"), ("제갈", "Jegal")),
        (("미자", "Mija"), ("순옥", "Sunok"), ("향단", "Hyangdan")),
    ),
)
SHARES = (0.5, 0.2, 0.12, 0.06, 0.03, 0.06, 0.03)
HOSPITALS = (
    ("St. Aldwyn's Infirmary", "1 Elder Row, Nettlebridge"),
    ("Klinikum Hohenfurtwangen", "Am Weiher 12, Hohenfurtwangen"),
    ("Hôpital Sainte-Ombeline", "3 rue des Tilleuls, Valmarais"),
    ("Hospital da Boa Ventura", "Av. das Acácias 400, Serra Alta"),
    ("Ravnsborg Sygehus", "Havnegade 7, Ravnsborg"),
    ("Lake Orrin Women's Center", "2200 Lakeshore Dr, Orrin"),
)


@dataclass(frozen=True)
class Person:
    """An invented person.

    `name` is a DICOM person name in `character_set`; `family_shown` and `given_shown` are in Latin letters.
    """

    name: str
    character_set: tuple[str, ...]
    family_shown: str
    given_shown: str
    patient_id: str
    birth: date

    @property
    def shown(self) -> str:
        """Family and given name as a banner writes them."""
        return f"{self.family_shown}, {self.given_shown}"


def invent_person(generator: np.random.Generator) -> Person:
    """Return an adult with a name, an identifier and a birth date, drawn from the generator."""
    names = NAMES[int(generator.choice(len(NAMES), p=SHARES))]
    family, family_shown = names.family[int(generator.integers(len(names.family)))]
    given, given_shown = names.given[int(generator.integers(len(names.given)))]
    name = f"{family}^{given}"
    if len(names.character_set) > 1:
        name = f"{family_shown}^{given_shown}={name}"
    age_days = int(generator.integers(25 * 365, 88 * 365))
    # Wide enough that two patients of a site hardly ever share one.
    number = int(generator.integers(10**8, 10**9))
    return Person(
        name, names.character_set, family_shown, given_shown, f"H{number}", date(2024, 1, 1) - timedelta(days=age_days)
    )


def invent_staff(generator: np.random.Generator) -> tuple[str, str]:
    """Return the names of a referring physician and an operator, as DICOM person names in ASCII."""
    names = NAMES[0]
    physician, operator = (
        f"{names.family[int(generator.integers(len(names.family)))][0]}^{names.given[int(generator.integers(len(names.given)))][0]}"
        for _ in range(2)
    )
    return f"{physician}^^Dr.", operator
