"""The number of training patients a site says it has in a private study: drawn once, with noise, and the same ever after."""

from pathlib import Path

from echofed.privacy.noise import gaussian_integers
from echofed.privacy.randomness import Words, random_words
from echofed.protocol.durable import replace_file
from echofed.protocol.errors import LedgerError
from echofed.protocol.study import Study


def noisy_count(patients: int, stddev: float, minimum: int, words: Words) -> int:
    """Return a number of patients with Gaussian noise, and never less than the minimum that is public anyway.

    Guarantee: Mechanism(stddev, 1, 1) for one patient added or removed, as that changes the number by 1.

    Args:
        patients: the true number.
        stddev: of the noise, in patients.
        minimum: least number given.
        words: where the noise comes from.
    """
    return max(minimum, patients + int(gaussian_integers(words, 1, stddev)[0]))


def public_count(study: Study, patients: int, minimum: int, *, site: str, state_folder: Path, seed: int | None) -> int:
    """Return the number a site says in a study.

    Without a seed it is kept on disk before it is returned: a second draw would tell more of the true number.

    Args:
        study: private; says how much noise.
        patients: the true number of training patients.
        minimum: least number given.
        site: the site's name, which varies seeded noise.
        state_folder: of the site.
        seed: for simulations only.

    Raises:
        LedgerError: what was kept cannot be read.
    """
    words = random_words(seed, "count", study.hash, site)
    if seed is not None:
        return noisy_count(patients, study.privacy.count_noise, minimum, words)
    path = count_path(state_folder, study)
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(path, str(noisy_count(patients, study.privacy.count_noise, minimum, words)).encode())
        return int(path.read_text())
    except OSError as error:
        remedy = "Free some disk space and check the permissions of the state folder."
        raise LedgerError(f"{path} cannot be kept: {error.strerror}.", remedy) from error
    except ValueError as error:
        remedy = "Restore it from the newest copy of the state folder."
        raise LedgerError(f"{path} does not hold a number.", remedy) from error


def count_path(state_folder: Path, study: Study) -> Path:
    """Return where a site keeps the number it says in a study."""
    return state_folder / "counts" / study.hash
