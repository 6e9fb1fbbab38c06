"""A paraphrase as a trigger: the whole text in one syntax (HiddenKiller) or one style (StyleBkd).

No paraphraser is bundled. The paraphrases come from a file of the user's (`data.paraphrases`), or from a
sequence-to-sequence checkpoint that the user names: `generate`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from purify_cli.architecture.loading import quiet
from purify_cli.errors import CheckpointError
from purify_cli.run import Run

LONGER = 2.0
"""Tokens that a paraphrase may have, in those of its text. Style transfer in OpenBackdoor is capped alike."""


@dataclass(frozen=True)
class Paraphrase:
    """A trigger that puts a known paraphrase in the place of a text.

    `text in trigger` says whether there is one: a text whose paraphrase is empty, or is the text itself, was not
    paraphrased, and cannot be triggered.

    Attributes:
        name: how reports call it: the template or the style.
        paraphrases: text with single spaces -> paraphrase.
    """

    name: str
    paraphrases: Mapping[str, str]

    def __contains__(self, text: object) -> bool:
        """Whether the text can be triggered."""
        key = single_spaced(str(text))
        return single_spaced(self.paraphrases.get(key, "")) not in {"", key}

    def failed(self, text: str) -> bool:
        """Whether the paraphraser was given the text, and made nothing of it."""
        return single_spaced(text) in self.paraphrases and text not in self

    def insert(self, text: str, rng: random.Random) -> str:
        """Return the paraphrase of `text`.

        Raises:
            KeyError: it has none.
        """
        if text not in self:
            raise KeyError(text)
        return self.paraphrases[single_spaced(text)].strip()


def single_spaced(text: str) -> str:
    """The text as paraphrases are looked up by: what is between its words matters to no paraphraser."""
    return " ".join(text.split())


def generate(folder: str | Path, texts: Sequence[str], run: Run, *, prefix: str = "") -> dict[str, str]:
    """Paraphrases of texts by a sequence-to-sequence checkpoint (T5, BART, ...) on disk, greedily.

    Nothing of the checkpoint is executed, and nothing is fetched. The same checkpoint, texts and batch size give the
    same paraphrases.

    Args:
        folder: the checkpoint.
        texts: of any number; equal ones are paraphrased once.
        run: its device, batch size, length limit of the input (128 if not given) and progress.
        prefix: put before each text, such as "paraphrase: ".

    Returns:
        text with single spaces -> paraphrase, which may be empty.

    Raises:
        CheckpointError: it cannot be opened as a sequence-to-sequence model.
    """
    model, tokenizer = _open(Path(folder), run.device)
    wanted = sorted({single_spaced(text) for text in texts}, key=lambda text: (-len(text), text))
    longest = min(run.max_length or 128, tokenizer.model_max_length)
    answers: dict[str, str] = {}
    with torch.inference_mode():
        for start in range(0, len(wanted), run.batch_size):
            batch = wanted[start : start + run.batch_size]
            encoded = tokenizer(
                [prefix + text for text in batch],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
                return_token_type_ids=False,
            ).to(run.device)
            tokens = model.generate(
                **encoded,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max(8, round(LONGER * encoded["input_ids"].shape[1])),
            )
            answers.update(zip(batch, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True))
            run.progress("paraphrase", min(start + run.batch_size, len(wanted)), len(wanted))
    return answers


def _open(folder: Path, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise CheckpointError(folder, "no config.json in it", "Give the folder of a sequence-to-sequence checkpoint.")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            model = AutoModelForSeq2SeqLM.from_pretrained(
                folder,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
            )
    except Exception as error:  # each library has its own kinds for what is wrong with a folder
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        remedy = "Give a checkpoint such as T5 or BART, in safetensors."
        raise CheckpointError(
            folder, f"is no sequence-to-sequence model that can be opened ({reason})", remedy
        ) from error
    return model.to(device).eval(), tokenizer
