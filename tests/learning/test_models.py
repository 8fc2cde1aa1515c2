"""Every model of the catalogue keeps the promises of StudyModel."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from echofed.learning.attention import AttentionPooling
from echofed.learning.models import (
    StudyModel,
    build_model,
    initial_parameters,
    initial_parameters_from,
    load_parameters,
    normalisation_names,
    read_parameters,
    refuse_batch_norm,
    trainable_names,
)
from echofed.protocol.arrays import encode_parameters
from echofed.protocol.errors import ArraysError, BatchNormError, ParametersError, StudyInvalidError
from echofed.protocol.study import Study

CLASSIFIERS = ("scattering", "small_resnet", "densenet121", "efficientnet_b0")
SEGMENTERS = ("basic_unet", "unet")
FREEZABLE = ("small_resnet", "densenet121", "efficientnet_b0", *SEGMENTERS)
LABELS: dict[str, list[str]] = {
    "binary": ["benign", "malignant"],
    "multiclass": ["normal", "benign", "malignant"],
    "multilabel": ["mass", "cyst", "calcification", "shadow"],
    "regression": ["thickness"],
    "segmentation": ["lesion"],
}
SIDE_PX = 64


def make_study(name: str, kind: str = "binary", unit: str = "image", side: int = SIDE_PX, **model: Any) -> Study:
    task = {"kind": kind, "unit": unit, "labels": tuple(LABELS[kind])}
    if kind == "regression":
        task["value_range"] = (0.0, 10.0)
    return Study.model_validate(
        {
            "schema_version": 1,
            "title": "A study",
            "purpose": "To test.",
            "contact": "Nobody",
            "task": task,
            "preprocessing": {"image_size_px": side},
            "model": {"name": name, **model},
            "training": {"learning_rate": 0.1, "local_steps": 1, "sampling_probability": 0.5},
            "privacy": {"unit": "none"},
            "federation": {"rounds": 1},
        }
    )


def study_for(name: str, unit: str = "image", **model: Any) -> Study:
    return make_study(name, "segmentation" if name in SEGMENTERS else "binary", unit, **model)


def perturbed(study: Study) -> StudyModel:
    """A model whose parameters are all away from their start, as after some training."""
    model = build_model(study)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def images(n: int, side: int = SIDE_PX) -> torch.Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("kind", "outputs"), [("binary", 1), ("multiclass", 3), ("multilabel", 4), ("regression", 1)])
def test_every_task_gets_its_outputs(name: str, kind: str, outputs: int) -> None:
    model = build_model(make_study(name, kind))
    assert model(images(2), torch.arange(2), 2).shape == (2, outputs)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_an_exam_gets_one_answer_for_its_images(name: str) -> None:
    model = perturbed(study_for(name, "exam"))
    exam_of_image = torch.tensor([1, 0, 1, 1, 0])
    with torch.no_grad():
        logits = model(images(5), exam_of_image, 2)
        alone = model(images(5)[exam_of_image == 1], torch.zeros(3, dtype=torch.int64), 1)
    assert logits.shape == (2, 1)
    torch.testing.assert_close(logits[1:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize("side", [16, 50, 64])
def test_segmentation_answers_every_pixel_whatever_the_side(name: str, side: int) -> None:
    model = build_model(make_study(name, "segmentation", side=side))
    assert model(images(2, side), torch.arange(2), 2).shape == (2, 1, side, side)


@pytest.mark.parametrize("name", [*CLASSIFIERS, *SEGMENTERS])
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    model = perturbed(study_for(name)).train()
    inputs = images(3)
    with torch.no_grad():
        together = model(inputs, torch.arange(3), 3)
        alone = torch.cat([model(inputs[i : i + 1], torch.arange(1), 1) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["small_resnet", "scattering"])
def test_answers_come_in_the_order_of_the_items(name: str) -> None:
    model = perturbed(study_for(name))
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        straight, shuffled = model(images(3), torch.arange(3), 3), model(images(3), order, 3)
    torch.testing.assert_close(shuffled[order], straight)
    assert not torch.allclose(straight[0], straight[1], atol=1e-6)


def test_an_image_item_is_one_image() -> None:
    with pytest.raises(ValueError, match="2 items of one image each were given 3 images"):
        build_model(study_for("small_resnet"))(images(3), torch.tensor([0, 0, 1]), 2)


@pytest.mark.parametrize("name", [*CLASSIFIERS, *SEGMENTERS])
def test_training_repeats_exactly_and_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    model = perturbed(study_for(name)).train()
    first = model(images(2), torch.arange(2), 2)
    assert torch.equal(first, model(images(2), torch.arange(2), 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("encoder", ["trained", "frozen"])
@pytest.mark.parametrize(
    ("name", "unit"), [(name, "image") for name in FREEZABLE] + [(name, "exam") for name in FREEZABLE[:3]]
)
def test_gradients_reach_exactly_the_trainable_parameters(name: str, encoder: str, unit: str) -> None:
    model = perturbed(study_for(name, unit, encoder=encoder))
    items = 2 if unit == "image" else 1
    item_of_image = torch.arange(2) % items
    model(images(2), item_of_image, items).square().sum().backward()
    reached = [
        name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0
    ]
    assert reached == trainable_names(model)
    heads = {name.split(".")[0] for name in reached}
    expected = {"head"} | ({"encoder"} if encoder == "trained" else set()) | ({"pooling"} if unit == "exam" else set())
    assert heads == expected


@pytest.mark.parametrize("head", ["linear", "small"])
def test_only_the_head_on_scattering_features_learns(head: str) -> None:
    model = perturbed(study_for("scattering", head=head))
    assert model.has_fixed_features
    assert not model.encode(images(2)).requires_grad
    model(images(2), torch.arange(2), 2).square().sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is not None] == trainable_names(model)
    assert all(name.startswith("head.") for name in trainable_names(model))


@pytest.mark.parametrize("unit", ["image", "exam"])
@pytest.mark.parametrize("name", ["scattering", "small_resnet"])
def test_stored_features_give_the_same_answers(name: str, unit: str) -> None:
    model = perturbed(study_for(name, unit, **({"encoder": "frozen"} if name == "small_resnet" else {})))
    items = 4 if unit == "image" else 2
    item_of_image = torch.arange(4) % items
    assert model.has_fixed_features
    with torch.no_grad():
        stored = torch.cat([model.encode(image) for image in images(4).split(1)])
        torch.testing.assert_close(
            model.answer(stored, item_of_image, items), model(images(4), item_of_image, items), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", FREEZABLE)
def test_features_that_learn_or_are_maps_are_not_fixed(name: str) -> None:
    assert not build_model(study_for(name)).has_fixed_features
    assert build_model(study_for(name, encoder="frozen")).has_fixed_features == (name not in SEGMENTERS)


@pytest.mark.parametrize("name", [*CLASSIFIERS, *SEGMENTERS])
def test_no_model_has_batch_normalisation_or_in_place_activations(name: str) -> None:
    for layer in build_model(study_for(name)).modules():
        assert not isinstance(layer, nn.modules.batchnorm._BatchNorm)
        assert getattr(layer, "inplace", False) is False


def test_batch_normalisation_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    with pytest.raises(BatchNormError, match=r"batch normalisation in: 1, 2\.0\. Use group normalisation"):
        refuse_batch_norm(model)


@pytest.mark.parametrize("name", ["small_resnet", "densenet121", "efficientnet_b0", "basic_unet", "unet"])
def test_normalisation_names_are_those_of_group_norm(name: str) -> None:
    model = build_model(study_for(name))
    expected = [
        f"{owner}.{part}"
        for owner, layer in model.named_modules()
        if isinstance(layer, nn.GroupNorm | nn.InstanceNorm2d)
        for part in ("weight", "bias")
    ]
    assert normalisation_names(model) == expected
    assert set(expected) < set(trainable_names(model))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("small_resnet", 1e5, 2e5),
        ("densenet121", 6.5e6, 7.5e6),
        ("efficientnet_b0", 3.5e6, 4.5e6),
        ("basic_unet", 4e5, 6e5),
        ("unet", 1e6, 2e6),
    ],
)
def test_sizes_are_as_documented(name: str, low: float, high: float) -> None:
    assert low < sum(value.numel() for value in build_model(study_for(name)).parameters()) < high


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0"])
def test_images_too_small_for_a_network_are_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(StudyInvalidError, match="Write image_size_px: 32 or more"):
        build_model(make_study(name, side=31))


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0"])
@pytest.mark.parametrize("side", [32, 33, 47])
def test_the_smallest_images_are_seen(name: str, side: int) -> None:
    assert build_model(make_study(name, side=side))(images(2, side), torch.arange(2), 2).shape == (2, 1)


def test_attention_starts_as_the_mean_and_its_shares_add_up_to_one() -> None:
    pooling = AttentionPooling(6)
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    exam_of_image = torch.tensor([0, 1, 0, 0, 1])
    means = torch.stack([features[exam_of_image == exam].mean(0) for exam in range(2)])
    torch.testing.assert_close(pooling(features, exam_of_image, 2), means)
    with torch.no_grad():
        pooling.score.weight.fill_(300.0)
    constant = torch.ones(5, 6)
    torch.testing.assert_close(pooling(constant, exam_of_image, 2), torch.ones(2, 6))
    assert not torch.allclose(pooling(features, exam_of_image, 2), means)


def test_attention_equals_the_formula_written_out() -> None:
    pooling = AttentionPooling(6).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        pooling.score.weight.copy_(torch.randn(1, 16, generator=generator))
    features = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    hidden = torch.tanh(pooling.content(features)) * torch.sigmoid(pooling.gate(features))
    shares = torch.softmax(pooling.score(hidden), 0)
    torch.testing.assert_close(
        pooling(features, torch.zeros(3, dtype=torch.int64), 1), (shares * features).sum(0)[None]
    )


@pytest.mark.parametrize("name", [*CLASSIFIERS, *SEGMENTERS])
def test_parameters_survive_reading_and_loading(name: str) -> None:
    study = study_for(name)
    model, other = perturbed(study), build_model(study)
    parameters = read_parameters(model)
    assert list(parameters) == list(model.state_dict())
    load_parameters(other, parameters)
    with torch.no_grad():
        assert torch.equal(model(images(2), torch.arange(2), 2), other(images(2), torch.arange(2), 2))
    names = trainable_names(model)[:2]
    assert list(read_parameters(model, names)) == names


def test_what_was_read_does_not_follow_the_model() -> None:
    model = build_model(study_for("small_resnet"))
    parameters = read_parameters(model, ["head.bias"])
    with torch.no_grad():
        model.get_parameter("head.bias").fill_(7)
    assert parameters["head.bias"].tolist() == [0.0]
    load_parameters(model, parameters)
    parameters["head.bias"][0] = 9
    assert model.get_parameter("head.bias").tolist() == [0.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head.bias": np.zeros(2, np.float32)}, r"shape \(2,\), not \(1,\)"),
        ({"head.bias": np.zeros((1, 1), np.float32)}, r"shape \(1, 1\), not \(1,\)"),
        ({"head.bias": np.zeros(1)}, "float64, not float32"),
        ({"heads.bias": np.zeros(1, np.float32)}, "no parameter 'heads.bias'"),
    ],
)
def test_a_refused_load_changes_nothing(wrong: dict[str, Any], message: str) -> None:
    model = build_model(study_for("small_resnet"))
    before = read_parameters(model)
    with pytest.raises(ParametersError, match=message):
        load_parameters(model, {"head.weight": np.ones((1, 64), np.float32), **wrong})
    assert all(np.array_equal(before[name], value) for name, value in read_parameters(model).items())


def test_an_unknown_name_cannot_be_read() -> None:
    with pytest.raises(ParametersError, match="no parameter 'tail'"):
        read_parameters(build_model(study_for("small_resnet")), ["tail"])


@pytest.mark.parametrize("name", ["small_resnet", "efficientnet_b0", "unet"])
def test_initial_parameters_are_a_function_of_the_seed(name: str) -> None:
    study = study_for(name)
    first, metadata = initial_parameters(study, 5)
    again, other = initial_parameters(study, 5)[0], initial_parameters(study, 6)[0]
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)
    model = build_model(study)
    load_parameters(model, first)
    assert metadata["model"] == name
    assert json.loads(metadata["trainable"]) == trainable_names(model)
    assert json.loads(metadata["normalisation"]) == normalisation_names(model)
    assert encode_parameters(first, metadata)
    assert not first["head.weight"].any()


def test_scattering_is_standardised_on_public_images() -> None:
    study = study_for("scattering", projection=8)
    public = np.random.default_rng(0).integers(0, 256, (12, SIDE_PX, SIDE_PX), dtype=np.uint8)
    parameters, metadata = initial_parameters(study, 5, public)
    again = initial_parameters(study, 5, public)[0]
    assert all(np.array_equal(parameters[key], again[key]) for key in parameters)
    before = read_parameters(build_model(study))
    changed = {key for key in parameters if not np.array_equal(parameters[key], before[key])}
    assert changed == {"encoder.standardise.mean", "encoder.standardise.basis"}
    assert json.loads(metadata["trainable"]) == ["head.weight", "head.bias"]
    with pytest.raises(ParametersError, match="standardised on public images"):
        initial_parameters(study, 5)


def test_an_encoder_is_taken_from_another_study(tmp_path: Path) -> None:
    source = perturbed(make_study("small_resnet", "multiclass"))
    path = tmp_path / "trained.safetensors"
    path.write_bytes(encode_parameters(read_parameters(source)))
    study = study_for("small_resnet", "exam", encoder="frozen")
    parameters, metadata, fresh = initial_parameters_from(study, path, seed=5)
    assert fresh == []
    for name, value in read_parameters(source).items():
        if name.startswith("encoder."):
            assert np.array_equal(parameters[name], value)
    assert not parameters["head.weight"].any()
    assert set(json.loads(metadata["trainable"])) == {name for name in parameters if not name.startswith("encoder.")}


def test_an_encoder_without_its_prefix_is_taken_and_what_is_missing_is_named(tmp_path: Path) -> None:
    study = study_for("small_resnet")
    encoder = read_parameters(perturbed(study).encoder)
    missing = encoder.pop("stem.weight")
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(encode_parameters(encoder))
    parameters, _, fresh = initial_parameters_from(study, path, seed=5)
    assert fresh == ["encoder.stem.weight"]
    assert not np.array_equal(parameters["encoder.stem.weight"], missing)
    assert np.array_equal(parameters["encoder.norm.weight"], encoder["norm.weight"])


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    study, path = study_for("small_resnet"), tmp_path / "other.safetensors"
    path.write_bytes(encode_parameters({"something": np.zeros(3, np.float32)}))
    with pytest.raises(ParametersError, match=r"other\.safetensors has no parameter of the encoder of small_resnet"):
        initial_parameters_from(study, path, seed=5)
    path.write_bytes(encode_parameters(read_parameters(build_model(study_for("small_resnet", width=24)))))
    with pytest.raises(ParametersError, match="has shape"):
        initial_parameters_from(study, path, seed=5)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ArraysError):
        initial_parameters_from(study, path, seed=5)
    with pytest.raises(ParametersError, match="cannot be read"):
        initial_parameters_from(study, tmp_path / "absent", seed=5)


def test_small_models_do_not_import_monai() -> None:
    modules = ", ".join(f"echofed.learning.{name}" for name in ("models", "tasks", "augment", "metrics"))
    program = f"import sys, {modules}; print('monai' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
