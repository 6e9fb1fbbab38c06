"""What a classifier answers, text by text."""

from __future__ import annotations

from collections.abc import Callable
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

    def ask(batch: dict[str, Tensor]) -> Tensor:
        logits: Tensor = model(**batch).logits.float()  # [batch, labels]
        return logits if logits.shape[-1] == 1 else logits.softmax(dim=-1)

    modes = [(module, module.training) for module in model.modules()]
    model.to(run.device)
    model.eval()
    try:
        return asked(ask, model.config.num_labels, tokenizer, encoded, run)
    finally:
        for module, training in modes:
            module.training = training


def asked(ask: Callable[[dict[str, Tensor]], Tensor], width: int, tokenizer: Any, encoded: Encoded, run: Run) -> Tensor:
    """What is said of each text, asked batch by batch, without gradients.

    Args:
        ask: gives `[batch, width]` for a batch without labels on `run.device`.
        width: of what it gives.
        tokenizer: fills short rows.
        encoded: token ids; their labels are not looked at.
        run: batch size, device and progress.

    Returns:
        [texts, width] float32 on the CPU, rows in the order of the texts.
    """
    encoded, filler, done = replace(encoded, labels=None), padding_id(tokenizer), 0
    answers = torch.empty((len(encoded), width), dtype=torch.float32)
    with torch.inference_mode():
        for indices in by_length(encoded, run.batch_size):
            batch = collate(encoded, indices, filler)
            answers[indices] = ask({name: column.to(run.device) for name, column in batch.items()}).float().cpu()
            done += len(indices)
            run.progress("predict", done, len(encoded))
    return answers
