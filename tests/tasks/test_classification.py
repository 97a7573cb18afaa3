"""The loss of a classifier: mixed images, and a teacher as in DeiT."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import compose
from timm.data import Mixup
from torch import nn
from torch.nn import functional as F
from trained import go

from metaformer.config.schema import Distill, Recipe
from metaformer.data.images import load
from metaformer.system.errors import ConfigError
from metaformer.tasks import classification
from metaformer.tasks.classification import Classifier, build_teacher, distillation_loss


def test_mixup_is_timms_and_a_function_of_the_step(monkeypatch):
    seen = []
    mixed, loss = Mixup.__call__, Classifier._loss

    def mix(self, *batch):
        seen.append([part.clone() for part in mixed(self, *batch)])
        return seen[-1]

    def watch(self, logits, labels):
        found = loss(self, logits, labels)
        torch.testing.assert_close(found, -(labels * logits.log_softmax(1)).sum(1).mean())  # smoothed once
        return found

    monkeypatch.setattr(Mixup, "__call__", mix)
    monkeypatch.setattr(Classifier, "_loss", watch)
    go("recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.epochs=1")
    first = list(seen)
    _, targets = first[0]
    assert targets.shape == (64, 10)
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 64)
    assert targets.min() == pytest.approx(0.1 / 10)
    assert len({round(t[1].std().item(), 4) for t in first}) > 10  # another share in every step
    seen.clear()
    go("recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.epochs=1", "runtime.runs=b")
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, seen, strict=True))
    seen.clear()
    go("recipe.mixup=0.8", "recipe.cutmix=1.0", "recipe.epochs=1", "mixer=identity", "runtime.runs=c")
    assert torch.equal(first[5][0], seen[5][0])  # the same images for every mixer


@pytest.fixture
def teacher(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", in_chans=1, num_classes=10).state_dict(), tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_distillation_is_that_of_the_paper(teacher, mode):
    options = ("teacher=test_resnet", f"weights={teacher}", f"mode={mode}", "tau=3", "alpha=0.3")
    recipe = compose(*(f"recipe.distill.{option}" for option in options)).recipe
    taught, student = torch.randn(8, 10), torch.randn(8, 10)
    loss = distillation_loss(student, taught, recipe.distill)
    if mode == "hard":
        expected = -student.log_softmax(1)[torch.arange(8), taught.argmax(1)].mean()
    else:
        p, q = (taught / 3).softmax(1), (student / 3).softmax(1)
        expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_a_student_with_and_without_a_distillation_token(teacher):
    distill = ("recipe.distill.teacher=test_resnet", f"recipe.distill.weights={teacher}")
    with_teacher, without = (go("recipe.epochs=1", *words).result for words in (distill, ()))
    assert with_teacher.metrics["train_loss"] != without.metrics["train_loss"]
    seen, classed, loss_of = [], [], Classifier._loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "_loss", lambda self, z, *rest: (classed.append(z), loss_of(self, z, *rest))[1])
        patch.setattr(
            classification, "distillation_loss", lambda z, *rest: (seen.append(z), distillation_loss(z, *rest))[1]
        )
        name = "model.name=deit_tiny_distilled_patch16_224"
        words = ("recipe.epochs=1", "model=timm", name, "mixer=builtin", "data=fashion_small", "data.train=64")
        result = go(*distill, *words).result
    assert len(seen) == 1
    assert len(classed) >= 1
    assert not torch.equal(classed[0], seen[0])  # the teacher is that of the other token
    assert result.metrics["test_accuracy"] >= 0


def test_the_stem_of_a_teacher_for_colours_is_adapted_to_grey_images(tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "colours.pt")
    images = load(compose("data=digits").data)
    taught = build_teacher(Distill("test_resnet", str(tmp_path / "colours.pt")), images)
    theirs = torch.load(tmp_path / "colours.pt", weights_only=True)["conv1.0.weight"]
    torch.testing.assert_close(taught.state_dict()["conv1.0.weight"], theirs.sum(1, keepdim=True))


def test_a_teacher_that_does_not_fit_is_named(teacher):
    with pytest.raises(ConfigError, match=r"recipe\.distill\.weights=.*: does not fit the model"):
        go("recipe.epochs=1", "recipe.distill.teacher=resnet18", f"recipe.distill.weights={teacher}")


def test_the_two_tokens_of_a_student_learn_from_the_labels_and_from_the_teacher(monkeypatch):
    class Student(nn.Module):
        def forward(self, x):
            return x[..., 0, 0], x[..., 0, 1]  # of the class, of the distillation

    teacher, labels = nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), torch.arange(8) % 4
    images, distill = torch.randn(8, 4, 1, 2), Distill(teacher="x", weights="x", alpha=0.3)
    module = Classifier(Student(), Recipe(label_smoothing=0.0, distill=distill), classes=4, teacher=teacher)
    monkeypatch.setattr(Classifier, "trained_on", lambda self, images, loss, right, count: loss)
    own, taught = F.cross_entropy(images[..., 0, 0], labels), teacher(images).argmax(1)
    expected = 0.7 * own + 0.3 * F.cross_entropy(images[..., 0, 1], taught)
    torch.testing.assert_close(module.training_step((images, labels)), expected)
