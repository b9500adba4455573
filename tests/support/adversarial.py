"""The trainers of docs/adversarial-training.md, on models whose noise does not depend on how rows are batched."""

from transformers import TrainerCallback

from support import names_of, tiny, zoo

RECIPES = {name: cls for name, cls in names_of("docs/adversarial-training.md").items() if name in ("FGM", "AWP")}


class OnePassOfThePlainLoss(TrainerCallback):
    """Where alpha is 0 all rows of a forward belong to one pass."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        noise = next(module for module in model.modules() if isinstance(module, tiny.PassNoise))
        noise.register_forward_pre_hook(
            lambda module, inputs: setattr(module, "num_passes", 2 if args.rdrop_alpha else 1)
        )


def model():
    """A float64 model whose weights are large enough for a divergence that shows."""
    made = zoo.noisy("single_label")
    made.classifier.weight.data *= 50
    return made
