"""Sites that cannot do their part are left out, named and counted; the others go on if they are enough."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from echofed.protocol.errors import SitesError, TooFewRepliesError
from echofed.protocol.study import Study
from echofed.server.checkpoint import read_checkpoint
from echofed.server.history import read_history
from echofed.simulations.run import Simulation, simulate_study
from tests.small_simulations import draw_sites, small_study, source, write_study
from tests.studies import PRIVATE

Rows = list[dict[str, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_sites(tmp_path / "phantoms")


def rewrite(site: Path, change: Callable[[Rows], Rows]) -> None:
    """Change the rows of a site's index."""
    with (site / "index.csv").open(newline="") as stream:
        rows = change(list(csv.DictReader(stream)))
    with (site / "index.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run(tmp_path: Path, data: Path, study: Study) -> dict[str, Any]:
    file = write_study(tmp_path / "study.yaml", study)
    out = simulate_study(Simulation(file, source(data), tmp_path / "run"))
    results: dict[str, Any] = json.loads((out / "results.json").read_bytes())
    return results


def without_labels(rows: Rows) -> Rows:
    return [{**row, "label": ""} for row in rows]


def without_the_column(rows: Rows) -> Rows:
    return [{name: text for name, text in row.items() if name != "label"} for row in rows]


@pytest.mark.parametrize("change", [without_labels, without_the_column])
def test_a_site_without_labels_is_left_out_and_reported(
    tmp_path: Path, data: Path, change: Callable[[Rows], Rows]
) -> None:
    rewrite(data / "south", change)
    results = run(tmp_path, data, small_study())
    south = next(site for site in results["sites"] if site["name"] == "south")
    assert "no usable training patient" in south["left_out"]
    assert south["quarantined"]["no label"] > 0
    assert all(sorted(one["replied"]) == ["north", "west"] for one in results["rounds"])
    assert "south" in (tmp_path / "run" / "report.html").read_text()


def test_too_few_usable_sites_stop_before_the_first_round(tmp_path: Path, data: Path) -> None:
    rewrite(data / "south", without_labels)
    with pytest.raises(SitesError, match=r"needs 3 sites; 2 can train. south: It has no usable training patient"):
        run(tmp_path, data, small_study(federation={"minimum_sites": 3}))
    assert not (tmp_path / "run" / "checkpoint.efc").exists()


def test_one_patient_and_odd_images(tmp_path: Path, data: Path) -> None:
    """South: a single patient, who lands in training. West: images of every odd kind among good ones."""
    rewrite(data / "south", lambda rows: [{**row, "patient_id": "only", "label": "benign"} for row in rows])
    west = data / "west" / "images"
    rng = np.random.default_rng(0)
    noise = np.kron(rng.integers(0, 255, (9, 8)), np.ones((8, 8))).astype(np.uint8)
    images = sorted(west.iterdir())
    Image.new("L", (1, 1), 7).save(images[0])
    Image.fromarray(noise.astype(np.uint16) * 200).save(images[1])
    Image.fromarray(np.stack([noise, noise // 2, noise, np.full_like(noise, 128)], axis=2)).save(images[2])
    images[3].write_bytes(images[3].read_bytes()[:200])
    images[4].write_bytes(b"")
    images[5].unlink()
    federation = {"minimum_sites": 2, "minimum_replies": 2}
    results = run(tmp_path, data, small_study("multiclass", federation=federation))
    sites = {site["name"]: site for site in results["sites"]}
    assert sum(sites["south"]["patients"].values()) == 1
    assert (sites["south"]["left_out"] is None) == (sites["south"]["patients"]["training"] == 1)
    west_bad = sites["west"]["quarantined"]
    assert (west_bad["image too small"], west_bad["file missing"]) == (1, 1)
    assert west_bad["file damaged or not PNG or JPEG"] == 2
    assert results["completed"]


def test_a_private_study_leaves_out_a_site_it_could_not_protect(tmp_path: Path, data: Path) -> None:
    rewrite(data / "south", lambda rows: rows[:3])
    study = small_study("multiclass", privacy=PRIVATE, evaluation={"minimum_patients": 5})
    results = run(tmp_path, data, study)
    sites = {site["name"]: site for site in results["sites"]}
    assert {name for name, site in sites.items() if site["patients"]["training"] < 5} == {"south"}
    assert "a private study takes 5 or more" in sites["south"]["left_out"]
    assert sites["south"]["spent"] is None
    assert all(sorted(one["replied"]) == ["north", "west"] for one in results["rounds"])


def test_a_private_study_leaves_out_a_site_at_which_its_delta_has_no_meaning(tmp_path: Path, data: Path) -> None:
    # The noisy numbers of patients decide: below one in ten, so 6 patients or fewer, as there may be 3 more.
    for site in ("south", "west"):
        rewrite(data / site, lambda rows: rows[:6])
    study = small_study("multiclass", privacy={**PRIVATE, "delta": 0.1, "count_noise": 1.0})
    results = run(tmp_path, data, study)
    refused = {site["name"] for site in results["sites"] if "EF-401" in (site["left_out"] or "")}
    assert refused == {"north"}
    assert all(sorted(one["replied"]) == ["south", "west"] for one in results["rounds"])


def one_patient(rows: Rows) -> Rows:
    return [{**row, "patient_id": "only"} for row in rows]


def test_a_site_that_diverges_is_named_and_the_others_go_on(tmp_path: Path, data: Path) -> None:
    """An absurd learning rate and weight decay blow parameters up 99-fold each step, but only in steps that draw a patient.

    North draws one in some twenty steps, which is past the largest float; the sites with one patient hardly ever do.
    """
    for site in ("south", "west"):
        rewrite(data / site, one_patient)
    study = small_study(
        "regression",
        training={"learning_rate": 100.0, "weight_decay": 1.0, "local_steps": 1500, "sampling_probability": 0.001},
        federation={"rounds": 1},
        strategy={"maximum_update_norm": 1e9},
        evaluation={"validation_fraction": 0.0, "test_fraction": 0.0},
    )
    results = run(tmp_path, data, study)
    assert "EF-302" in results["rounds"][0]["refused"]["north"]
    assert sorted(results["rounds"][0]["replied"]) == ["south", "west"]
    checkpoint = read_checkpoint(tmp_path / "run", study.hash)
    assert checkpoint is not None
    assert all(np.isfinite(array).all() for array in checkpoint.parameters.values())
    assert results["test"]["pooled"]["metric"] is None


def test_fewer_replies_than_needed_stop_with_the_last_good_model(tmp_path: Path, data: Path) -> None:
    """After round 2 the layers two sites keep for themselves are damaged on disk; repaired, the run goes on."""
    federation = {"rounds": 4, "minimum_sites": 3, "minimum_replies": 2, "retries": 1}
    study = small_study(strategy={"preset": "FedBN"}, federation=federation)
    file = write_study(tmp_path / "study.yaml", study)
    undisturbed = simulate_study(Simulation(file, source(data), tmp_path / "undisturbed"))
    simulation, damaged = Simulation(file, source(data), tmp_path / "run"), dict[Path, bytes]()

    def damage(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "Training" and done == 2 and not damaged:
            damaged.update({path: path.read_bytes() for path in tmp_path.glob("run/sites/*/[ns]o*/personal/*/00002.*")})
            for path, content in damaged.items():
                path.write_bytes(content[:-1])

    with pytest.raises(
        TooFewRepliesError, match=r"Round 3 had 1 good replies of the 2 it needs, 2 times. north: .*EF-502"
    ):
        simulate_study(simulation, damage)
    assert len(damaged) == 2
    kept = read_checkpoint(tmp_path / "run", study.hash)
    assert kept is not None
    assert kept.round_number == 2
    assert len(read_history(tmp_path / "run", 2)) == 2
    for path, content in damaged.items():
        path.write_bytes(content)
    simulate_study(replace(simulation, resume=True))
    last = "model-last.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (undisturbed / last).read_bytes()
