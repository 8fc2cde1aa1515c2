import numpy as np
import pytest
import torch

from echofed.learning import batches as batches_module
from echofed.learning.batches import batch_logits, batches, copies_of
from echofed.learning.images import to_input
from echofed.learning.models import build_model
from tests.learning.example_sets import make_examples
from tests.studies import make_study

ITEMS = np.array([4, 0, 2, 3], np.int64)
SHARES = np.array([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("images_at_once", [1, 3, 100])
def test_items_come_whole_and_in_order(images_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(task={"unit": "exam"})
    examples = make_examples([[3, 1], [2], [4, 1]])
    monkeypatch.setattr(batches_module, "MAX_BATCH_PIXELS", images_at_once * 16**2)
    made = list(batches(examples, study, ITEMS, SHARES, torch.float32))
    rows = np.concatenate([examples.item_images[item] for item in ITEMS])
    assert torch.equal(torch.cat([b.inputs for b in made]), to_input(examples.images[rows], study.preprocessing))
    assert torch.cat([b.targets for b in made]).numpy().tolist() == examples.targets[ITEMS].tolist()
    assert torch.cat([b.shares for b in made]).tolist() == pytest.approx(SHARES.tolist())
    counts = torch.cat([torch.bincount(b.item_of_image) for b in made])
    assert counts.tolist() == [len(examples.item_images[item]) for item in ITEMS]
    assert all(len(b.inputs) <= images_at_once or len(b.targets) == 1 for b in made)


def test_features_stand_in_for_images() -> None:
    examples = make_examples([[1, 1], [1]], features=5)
    (batch,) = batches(examples, make_study(), np.array([2, 0]), np.ones(2), torch.float64)
    assert examples.features is not None
    rows = [int(examples.item_images[item][0]) for item in (2, 0)]
    assert batch.inputs.dtype == torch.float64
    assert batch.inputs.numpy().tolist() == examples.features[rows].astype(np.float64).tolist()


@pytest.mark.parametrize("gradients", [True, False])
def test_an_exam_too_large_for_memory_gives_the_same_answer_and_gradient(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(task={"unit": "exam"})
    examples = make_examples([[7]])
    model = build_model(study).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    answers = []
    for images_at_once in (100, 2):
        monkeypatch.setattr(batches_module, "MAX_BATCH_PIXELS", images_at_once * 16**2)
        (batch,) = batches(examples, study, np.array([0]), np.ones(1), torch.float64)
        with torch.set_grad_enabled(gradients):
            logits = batch_logits(model, examples, batch)
        answer = [logits.detach()]
        if gradients:
            answer += torch.autograd.grad(logits.sum(), list(model.parameters()))
        answers.append(answer)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-12) for one, other in zip(*answers, strict=True))
    assert answers[0][-1].abs().max() > 0


def test_augmentation_follows_the_generator() -> None:
    study = make_study(training={"augmentation": {"gain": 0.3, "speckle": 0.2, "copies": 4}})
    examples = make_examples([[1, 1]])

    def load(seed: int | None) -> torch.Tensor:
        rng = None if seed is None else np.random.default_rng(seed)
        return next(iter(batches(examples, study, np.array([0, 1]), np.ones(2), torch.float32, rng))).inputs

    assert torch.equal(load(1), load(1))
    assert not torch.equal(load(1), load(2))
    assert torch.equal(load(None), to_input(examples.images[np.concatenate(examples.item_images)], study.preprocessing))
    assert copies_of(study, examples) == 4


def test_copies_that_would_be_equal_are_not_made() -> None:
    examples = make_examples([[1]], features=3)
    assert copies_of(make_study(training={"augmentation": {"copies": 4}}), make_examples([[1]])) == 1
    assert copies_of(make_study(training={"augmentation": {"flip": True, "copies": 4}}), examples) == 1
