"""What a classifier answers, text by text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from purify_cli.data.encode import Encoded, by_length, collate, encode, length_limit, padding_id
from purify_cli.data.texts import Texts
from purify_cli.run import Run


def predict(model: Any, tokenizer: Any, texts: Texts, run: Run) -> Tensor:
    """Probabilities of every label for every text.

    The model is put into eval mode for the time and every part of it back into the mode it was in.

    Args:
        model: a sequence classifier of transformers or peft, on any device; it is moved to `run.device`.
        tokenizer: its tokenizer.
        texts: texts, or pairs of texts; labels are not looked at.
        run: batch size, length limit, device and progress.

    Returns:
        [texts, labels] float32 on the CPU, rows in the order of `texts`; of a regression the raw score, [texts, 1].
    """
    encoded = encode(tokenizer, texts.with_(labels=None), length_limit(tokenizer, model.config, run))
    return predict_encoded(model, tokenizer, encoded, run)


def predict_encoded(model: Any, tokenizer: Any, encoded: Encoded, run: Run) -> Tensor:
    """The same for texts that are token ids already; their labels are not looked at."""
    encoded = replace(encoded, labels=None)
    filler = padding_id(tokenizer)
    answers = torch.empty((len(encoded), model.config.num_labels), dtype=torch.float32)
    modes = [(module, module.training) for module in model.modules()]
    model.to(run.device)
    model.eval()
    try:
        with torch.inference_mode():
            done = 0
            for indices in by_length(encoded, run.batch_size):
                batch = collate(encoded, indices, filler)
                logits = model(
                    **{name: column.to(run.device) for name, column in batch.items()}
                ).logits.float()  # [batch, labels]
                answers[indices] = (logits if logits.shape[-1] == 1 else logits.softmax(dim=-1)).cpu()
                done += len(indices)
                run.progress("predict", done, len(encoded))
    finally:
        for module, training in modes:
            module.training = training
    return answers
