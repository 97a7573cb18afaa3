import lightning as L
import pytest
import torch

from metaformer.config.schema import Recipe
from metaformer.runs import progress_file
from metaformer.training import display
from metaformer.training.display import Bar, ProgressFile

STEPS = 3  # of an epoch


class Line(L.LightningModule):
    def __init__(self, breaks=False):
        super().__init__()
        self.layer, self.breaks = torch.nn.Linear(2, 1), breaks

    def training_step(self, batch):
        if self.breaks and self.global_step == 2:
            raise FloatingPointError
        return self.layer(batch).square().mean()

    def validation_step(self, batch):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


class Look(L.Callback):
    """Reads what is told at the end of each batch."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def look(self, *_):
        self.seen.append(progress_file.told(self.folder))

    on_train_start = on_train_batch_end = on_validation_batch_end = on_test_batch_end = look


def trained(callbacks, module=None, parts=1):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    bar = any(isinstance(callback, Bar) for callback in callbacks)
    trainer = L.Trainer(max_epochs=2, callbacks=callbacks, num_sanity_val_steps=0, enable_progress_bar=bar,
                        accumulate_grad_batches=parts, **quiet)  # fmt: skip
    images = torch.utils.data.DataLoader(torch.ones(4 * STEPS, 2), batch_size=4 // parts)
    module = module or Line()
    trainer.fit(module, images, images)
    trainer.test(module, images, verbose=False)


def test_where_a_run_is_is_told_while_it_trains_and_tests(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "EVERY", 0.0)
    look = Look(tmp_path)
    trained([ProgressFile(tmp_path, Recipe(batch=4)), look], parts=2)
    first, *steps = look.seen
    assert (first.state, first.epoch, first.step, first.steps, first.lr) == ("training", 1, 0, 2 * STEPS, 0.25)
    told = [(p.state, p.epoch, p.step) for p in steps if p.state != "testing"]
    training = [0, 1, 1, 2, 2, 3]
    epochs = [[("training", e + 1, STEPS * e + s) for s in training] + [("validating", e + 1, STEPS * (e + 1))] * 6
              for e in range(2)]  # fmt: skip
    assert told == epochs[0] + epochs[1]
    assert steps[2].images_per_second > 0
    assert {p.state for p in steps[-6:]} == {"testing"}
    assert list(tmp_path.iterdir()) == []


def test_it_is_told_once_a_second_at_most(tmp_path, monkeypatch):
    assert display.EVERY == 1.0
    monkeypatch.setattr(display, "EVERY", 3600.0)
    look = Look(tmp_path)
    trained([ProgressFile(tmp_path, Recipe(batch=4)), look])
    assert {(p.state, p.step) for p in look.seen} == {("training", 0), ("testing", 2 * STEPS)}


def test_a_budget_of_steps_is_what_is_told(tmp_path):
    look = Look(tmp_path)
    trained([ProgressFile(tmp_path, Recipe(batch=4, steps=5)), look])
    assert (look.seen[0].steps, look.seen[0].epochs) == (5, 2)


def test_nothing_is_left_where_a_run_fails(tmp_path):
    with pytest.raises(FloatingPointError):
        trained([ProgressFile(tmp_path, Recipe(batch=4))], Line(breaks=True))
    assert list(tmp_path.iterdir()) == []


def test_the_bar_has_loss_and_rate_and_counts_epochs_from_1(monkeypatch):
    monkeypatch.setattr(display, "EVERY", 0.0)
    bar, losses, told = Bar(), [], []

    class Loss(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append(f"{float(outputs['loss']):.3f}")
            told.append((bar.train_progress_bar.description.strip(), bar._metric_component._metrics))

    trained([bar, Loss()])
    assert [description for description, _ in told] == ["Epoch 1/2"] * STEPS + ["Epoch 2/2"] * STEPS
    assert [metrics for _, metrics in told] == [{"loss": loss, "lr": "2.50e-01"} for loss in losses]
