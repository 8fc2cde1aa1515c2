"""`echofed site budget`: what a hospital reads before it agrees to a study."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from echofed.client.ledger import open_ledger
from echofed.client.policy import SitePolicy
from echofed.privacy.accounting import Mechanism
from echofed.privacy.budget import Limits
from tests.small_simulations import draw_sites, echofed, environment, small_study, write_study

PRIVATE = {"unit": "patient", "epsilon": 3.0, "clipping_norm": 1.0}
EVALUATION = {"validation_fraction": 0.0, "test_fraction": 0.2}
STUDY = small_study(title="Breast lesions", privacy=PRIVATE, federation={"rounds": 20}, evaluation=EVALUATION)
BARE = small_study(title="A trial without noise")
WIDE = Limits(1000.0, 1000.0, 1e-3, 1e-3, allow_without_privacy=True)
DIGEST = "d" * 64


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a site of 14 patients, whose policy asks for 5, and two studies."""
    folder = tmp_path_factory.mktemp("hospital")
    sites = draw_sites(folder / "drawn")
    echofed("site", "register", sites / "north", "--column", "exam=exam_id", cwd=folder)
    (folder / "site" / "policy.yaml").write_text("minimum_patients: 5\n")
    write_study(folder / "study.yaml", STUDY)
    write_study(folder / "bare.yaml", BARE)
    return folder


@pytest.fixture
def hospital(registered: Path, tmp_path: Path) -> Path:
    return shutil.copytree(registered, tmp_path / "hospital")


def budget(hospital: Path, *arguments: str) -> str:
    return echofed("site", "budget", *arguments, cwd=hospital).stdout


def spend_five_rounds(hospital: Path, noise: float = 5.0) -> None:
    with open_ledger(hospital / "site", SitePolicy()) as ledger:
        ledger.spend(STUDY, 0, "count", Mechanism(10.0, 1.0, 1), DIGEST, WIDE)
        for number in range(1, 6):
            ledger.spend(STUDY, number, "training", Mechanism(noise, 1.0, 1), DIGEST, WIDE)


def test_a_new_site_has_all_its_budget(hospital: Path) -> None:
    said = budget(hospital)
    assert "14 usable patients; all studies together up to epsilon 10 at delta 0.0071" in said
    assert "none yet; nothing has been released" in said
    assert "epsilon 0.00 of 10" in said
    assert "a further study of epsilon 8.00 or less" in said
    assert not (hospital / "site" / "ledger").exists()
    (hospital / "site" / "policy.yaml").unlink()
    assert "(not written, these are the defaults)" in budget(hospital)


def test_what_studies_have_spent(hospital: Path) -> None:
    spend_five_rounds(hospital, noise=0.9)
    said = budget(hospital)
    assert "6 entries, whole" in said
    (line,) = [line for line in said.splitlines() if line.startswith("Breast lesions")]
    title, digest, rounds, epsilon, mechanisms = [part.strip() for part in line.split("  ") if part.strip()]
    assert (title, digest, rounds) == ("Breast lesions", STUDY.hash[:12], "5")
    assert mechanisms == "1 x noise 10; 5 x noise 0.9"
    assert 5.0 < float(epsilon) < 9.0
    assert f"epsilon {epsilon} of 10 at delta" in said
    left = float(said.split("a further study of epsilon ")[1].split()[0])
    assert 0.5 < left < 8.0
    assert "WITHOUT PRIVACY" not in said


def test_rounds_without_privacy_are_said_aloud(hospital: Path) -> None:
    with open_ledger(hospital / "site", SitePolicy()) as ledger:
        for number in (1, 2):
            ledger.spend(BARE, number, "training", None, DIGEST, WIDE)
    said = budget(hospital)
    assert "WITHOUT PRIVACY: 2 ROUNDS OF A trial without noise. NO EPSILON COVERS THEM." in said
    assert "NO PRIVACY" in next(line for line in said.splitlines() if line.startswith("A trial"))


def test_what_a_study_would_cost(hospital: Path) -> None:
    spend_five_rounds(hospital)
    said = budget(hospital, "--study", "study.yaml")
    assert f"With the whole of Breast lesions ({STUDY.hash[:12]})" in said
    assert "To come   15 x noise 5" in said  # as in the rounds before, not as for a new study
    assert said.endswith("Fits.\n")
    write_study(hospital / "new.yaml", STUDY.model_copy(update={"title": "Another"}))
    said = budget(hospital, "--study", "new.yaml")
    assert "To come   1 x noise 10; 40 x noise" in said
    study_epsilon = float(said.split("Study     epsilon about ")[1].split()[0])
    together = float(said.split("Together  epsilon ")[1].split()[0])
    assert 2.9 < study_epsilon <= 3.0 < together < 10


@pytest.mark.parametrize(
    ("policy", "study", "words"),
    [
        ("epsilon_per_study: 2.5", "study.yaml", "Does not fit. This costs epsilon 2.9"),
        ("epsilon_per_cohort: 2.5", "study.yaml", "with which all studies on these patients would reach"),
        ("minimum_patients: 30", "study.yaml", "Takes no part: "),
        ("epsilon_per_study: 2", "bare.yaml", "Does not fit. The site's policy allows no release without privacy."),
        ("allow_without_privacy: true", "bare.yaml", "NOTHING THAT NOISE COVERS"),
    ],
)
def test_what_does_not_fit(hospital: Path, policy: str, study: str, words: str) -> None:
    minimum = "" if "minimum" in policy else "minimum_patients: 5\n"
    (hospital / "site" / "policy.yaml").write_text(f"{minimum}{policy}\n")
    assert words in budget(hospital, "--study", study)


def test_a_ledger_that_cannot_be_trusted_is_an_error(hospital: Path) -> None:
    spend_five_rounds(hospital)
    shutil.rmtree(hospital / "site" / "ledger")
    failed = echofed("site", "budget", cwd=hospital, status=2)
    assert "EF-405" in failed.stderr
    assert "is gone" in failed.stderr


def test_a_site_without_a_ledger_answers_without_torch(hospital: Path) -> None:
    program = """
import sys
from pathlib import Path
from echofed.cli.budget import budget_text
budget_text(Path("site"), None)
print("torch" in sys.modules, "opacus" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=hospital, env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "False False\n", done.stderr
