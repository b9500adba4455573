"""A training without interruption, one that is stopped in the middle, and that one resumed."""

from transformers import TrainerCallback

from support import tiny, zoo


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def whole_cut_and_resumed(name, folder, weights=tiny.weights, num_train_epochs=2, **arguments):
    """The weights that the three trainings of 6 steps end with; the checkpoint is a step older than the stop."""
    finals = []
    for place, callbacks in (("whole", []), ("cut", [StopAt()]), ("cut", [])):
        resume = bool(finals) and not callbacks
        trainer = zoo.trainer(
            name, zoo.build(name, dropout=0.2), zoo.dataset(name), folder / place, callbacks=callbacks,
            per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=num_train_epochs,
            save_strategy="steps", save_steps=2, rdrop_warmup_steps=4, rdrop_every_n_steps=2,
            learning_rate=1e-2, **arguments,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(folder / "cut/checkpoint-2") if resume else None)
        finals.append(weights(trainer.model))
    assert trainer.state.global_step == 6
    return finals
