import numpy as np
import pytest
import torch
from torch import nn

from echofed.learning import batches as batches_module
from echofed.learning.evaluation import evaluate
from echofed.learning.examples import Examples
from echofed.learning.images import to_input
from echofed.learning.metrics import auc
from echofed.learning.models import StudyModel, build_model
from echofed.learning.tasks import item_losses, probabilities
from echofed.protocol.errors import NonFiniteLossError, NoPatientsError
from echofed.protocol.study import Study
from tests.learning.example_sets import make_examples
from tests.studies import make_study

SIZES = [[1, 1, 1], [1], [1, 1, 1, 1], [1, 1], [1]]


def started(study: Study) -> StudyModel:
    model = build_model(study)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("images_at_once", [1, 3, 100])
def test_patients_count_alike_however_many_images_they_have(
    images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "MAX_BATCH_PIXELS", images_at_once * 16**2)
    study, examples = make_study(), make_examples(SIZES)
    model = started(study)
    found = evaluate(model, examples, study)
    rows = np.concatenate(examples.item_images)
    with torch.no_grad():
        logits = model(to_input(examples.images[rows], study.preprocessing), torch.arange(11), 11)
        losses = item_losses(study.task, logits, torch.from_numpy(examples.targets)).numpy()
    scores = probabilities(study.task, logits)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    assert found.loss == pytest.approx(np.mean([losses[items].mean() for items in examples.patient_items]), rel=1e-5)
    of_patient = np.array([scores[items].mean() for items in examples.patient_items])
    positive = np.array([examples.targets[items].max() > 0.5 for items in examples.patient_items])
    assert found.metric == pytest.approx(auc(of_patient, positive))
    assert found.patients.tolist() == examples.patient_of_item.tolist()
    assert found.targets.tolist() == examples.targets.tolist()


def test_a_metric_of_one_class_is_undefined_and_the_loss_is_not() -> None:
    study, examples = make_study(), make_examples(SIZES)
    examples.targets[:] = 1
    found = evaluate(started(study), examples, study)
    assert found.metric is None
    assert found.loss > 0


def test_outlines_are_judged_by_dice() -> None:
    study = make_study(task={"kind": "segmentation", "labels": ("lesion",)}, model={"name": "basic_unet", "width": 8})
    examples = make_examples([[1, 1], [1]], side=16, masks=True)
    model = started(study)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        assert model.head.bias is not None
        model.head.bias.fill_(3.0)  # everything is outlined
    assert examples.masks is not None
    share = examples.masks[np.concatenate(examples.item_images)].reshape(3, -1).mean(1)
    found = evaluate(model, examples, study)
    dice = 2 * share / (1 + share)
    np.testing.assert_allclose(found.scores[:, 0], dice, rtol=1e-5)
    assert found.metric == pytest.approx((dice[:2].mean() + dice[2]) / 2, rel=1e-5)


def test_evaluating_changes_nothing() -> None:
    study, examples = make_study(training={"augmentation": {"gain": 0.5, "copies": 3}}), make_examples(SIZES)
    model = started(study)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, again = evaluate(model, examples, study), evaluate(model, examples, study)
    assert one.loss == again.loss
    assert one.scores.tolist() == again.scores.tolist()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_evaluate_or_a_loss_that_is_not_a_number_is_an_error() -> None:
    study, examples = make_study(), make_examples(SIZES)
    with pytest.raises(NoPatientsError):
        evaluate(started(study), Examples(examples.images, None, examples.targets, examples.item_images, ()), study)
    model = started(study)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError):
        evaluate(model, examples, study)
