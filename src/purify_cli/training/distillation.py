"""A student that learns the labels and, layer by layer, the hidden states of a teacher (NAD on transformers).

Li et al. 2021, "Neural Attention Distillation", ICLR, compares attention maps of images; the port to transformers is
that of the GBA paper (ICLR 2022 submission, appendix C), which compares hidden states. Its layers, tokens and
normalization are not given: here each layer behind the embeddings, and the tokens that are no padding.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from purify_cli.data.encode import encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.training import plain
from purify_cli.training.loop import Trained, fit
from purify_cli.training.recipe import Batch, Recipe


class Schedule(plain.Schedule, Protocol):
    """The settings of a distillation; those of the teacher's own training are a plain training's."""

    @property
    def teacher_epochs(self) -> int: ...
    @property
    def beta(self) -> float: ...


class Distillation:
    """Objective: cross entropy + beta * sum over the layers of the mean squared difference to the teacher's states.

    Args:
        teacher: a classifier of the student's depth and width. It is frozen and put into eval mode, and not copied.
        beta: weight of the distance.
    """

    def __init__(self, teacher: nn.Module, beta: float) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.beta = beta

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar in float32."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        student: Any = model(**inputs, output_hidden_states=True)
        with torch.no_grad():
            teacher: Any = self.teacher(**inputs, output_hidden_states=True)
        loss = nn.functional.cross_entropy(student.logits.float(), batch["labels"])
        return loss + self.beta * layer_distance(
            student.hidden_states[1:], teacher.hidden_states[1:], inputs["attention_mask"]
        )


def layer_distance(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """sum_l of the mean over tokens and numbers of (student - teacher)^2, a scalar in float32.

    Args:
        student, teacher: [batch, tokens, width] a layer.
        mask: [batch, tokens], 0 at padding, which does not count.
    """
    here = mask[..., None].float()  # [batch, tokens, 1]
    terms = [
        ((ours.float() - theirs.float()).square() * here).sum() / (here.sum() * ours.shape[-1])
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum()


def distil(
    teacher: Any, student: Any, tokenizer: Any, texts: Texts, how: Schedule, run: Run
) -> tuple[Trained, Trained]:
    """Train the teacher in place on labelled texts, then the student in place on the same texts beside it.

    Args:
        teacher, student: classifiers of the same labels, depth and width. The teacher is left frozen.
        tokenizer: of both.
        texts: with label ids.
        how: the teacher takes `teacher_epochs` of the same training without the distance.
        run: seed, device, max_length, progress and state.

    Returns:
        the teacher's training, and the student's.
    """
    encoded = {"task": encode(tokenizer, texts, length_limit(tokenizer, teacher.config, run))}

    def recipe(epochs: int, **openings: Any) -> Recipe:
        return Recipe(
            learning_rate=how.learning_rate,
            weight_decay=how.weight_decay,
            epochs=epochs,
            batch_size=how.batch_size,
            warmup=how.warmup,
            **openings,
        )

    taught = fit(teacher, encoded, recipe(how.teacher_epochs), run)
    # The teacher's losses stand for its weights, which the key of the student's kept state does not see.
    identity = f"distillation beta={how.beta} teacher={how.teacher_epochs} {taught.losses}"
    objective = Distillation(teacher, how.beta)
    return taught, fit(student, encoded, recipe(how.epochs, objectives={"task": objective}, identity=identity), run)
