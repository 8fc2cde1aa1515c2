"""The study document: one hash for one meaning, and nothing inconsistent accepted."""

import pytest
from pydantic import ValidationError

from echofed.protocol.study import PRESETS, Study
from echofed.protocol.study_summary import summary
from echofed.protocol.study_template import study_template
from echofed.protocol.yaml_text import load_document
from tests.studies import PRIVATE, make_study

KINDS = ["binary", "multiclass", "multilabel", "segmentation", "regression"]


def test_hash_is_of_the_meaning_not_the_spelling() -> None:
    text = study_template("binary")
    study = load_document(text, Study, "a")
    assert load_document("# a comment\n" + text, Study, "b").hash == study.hash
    assert load_document(text + "\nsecure_aggregation: {mode: none}\n", Study, "c").hash == study.hash
    assert load_document(text.replace("epsilon: 8 ", "epsilon: 8.0 "), Study, "d").hash == study.hash


@pytest.mark.parametrize(
    ("part", "value"),
    [("title", "Another"), ("federation", {"rounds": 3}), ("privacy", PRIVATE), ("training", {"learning_rate": 0.2})],
)
def test_every_part_counts_in_the_hash(part: str, value: object) -> None:
    assert make_study(**{part: value}).hash != make_study().hash


def test_the_hash_is_stable_across_versions() -> None:
    """A changed hash means that every approval ever given is void: change the schema version with it."""
    assert make_study().hash == "0cb8099ac12b0167db755ce0cbdfacc36e7ca265f60c77a4c09e4274b2169c71"


@pytest.mark.parametrize("kind", KINDS)
def test_templates_are_valid(kind: str) -> None:
    assert load_document(study_template(kind), Study, kind).task.kind == kind


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": {"labels": ("a",)}}, "exactly 2 labels"),
        ({"task": {"labels": ("a", "a")}}, "appears twice"),
        ({"task": {"class_weights": (1.0,)}}, "one class weight per label"),
        ({"task": {"value_range": (0.0, 1.0)}}, "value_range"),
        ({"task": {"kind": "regression", "labels": ("size",)}}, "value_range"),
        ({"task": {"kind": "segmentation", "labels": ("lesion",)}}, "takes one of these models"),
        ({"model": {"name": "basic_unet"}}, "takes one of these models"),
        ({"privacy": {"unit": "patient"}}, "needs epsilon and clipping_norm"),
        ({"privacy": {"unit": "none", "epsilon": 3.0}}, "did you mean"),
        ({"privacy": {**PRIVATE, "epsilon": 0.0}}, "greater than 0"),
        ({"privacy": {**PRIVATE, "epsilon": -1.0}}, "greater than 0"),
        ({"privacy": {**PRIVATE, "epsilon": float("inf")}}, "finite"),
        ({"privacy": {**PRIVATE, "delta": 1.0}}, "less than 1"),
        ({"federation": {"minimum_replies": 3}}, "cannot exceed"),
        ({"strategy": {"client_term": {"name": "proximal"}}}, "strength"),
        ({"training": {"optimizer": "adam", "momentum": 0.9}}, "belongs to sgd"),
        ({"evaluation": {"validation_fraction": 0.45, "test_fraction": 0.45}}, "too few patients"),
        ({"training": {"local_steps": "4"}}, "valid integer"),
    ],
)
def test_inconsistent_studies_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make_study(**changes)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fill_parts_and_a_part_written_beside_wins(preset: str) -> None:
    study = make_study(strategy={"preset": preset})
    for part, value in PRESETS[preset].items():
        filled = study.strategy.model_dump()[part]
        assert filled == value if isinstance(value, str) else value.items() <= filled.items()
    changed = make_study(strategy={"preset": preset, "server_optimizer": {"learning_rate": 0.125}})
    assert changed.strategy.server_optimizer.learning_rate == 0.125
    assert changed.strategy.server_optimizer.name == study.strategy.server_optimizer.name


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_says_what_a_data_protection_officer_asks(kind: str) -> None:
    study = load_document(study_template(kind), Study, kind)
    page = summary(study)
    assert study.hash in page
    assert len(page.splitlines()) <= 66
    assert max(map(len, page.splitlines())) <= 96
    assert ("epsilon 8" in page) == study.is_private
    assert ("NOTHING PROTECTS" in page) != study.is_private
    assert "No image and no patient identifier leaves" in page


def test_the_summary_names_counts_that_leave_only_when_they_do() -> None:
    assert "updates are weighted by it" in summary(make_study(strategy={"weighting": "patients"}))
    assert "updates are weighted by it" not in summary(make_study())
    assert "2 times, from a hospital" in summary(make_study())
    assert "from a hospital" not in summary(make_study(evaluation={"figures": "none"}))


def test_a_study_that_protects_little_says_so() -> None:
    assert "WEAK" not in summary(make_study(privacy=PRIVATE))
    assert "THIS IS WEAK: so large an epsilon" in " ".join(
        summary(make_study(privacy={**PRIVATE, "epsilon": 11.0})).split()
    )
    assert "THIS IS WEAK: so large a delta" in " ".join(summary(make_study(privacy={**PRIVATE, "delta": 0.05})).split())
