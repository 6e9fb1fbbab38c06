"""From what the user typed to a folder on disk. The only module that may use the network, and only for `hf://`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from purify_cli.errors import CheckpointError

_HUB = re.compile(r"hf://(?P<name>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies.

    Attributes:
        path: the folder.
        revision: the commit, for a checkpoint from the hub.
        weights_file: set when the user named one weights file and not the folder around it.
    """

    path: Path
    revision: str | None = None
    weights_file: Path | None = None


def locate(spec: str | Path) -> Location:
    """Find the folder that `spec` means: a local folder, a weights file in one, or `hf://org/name[@revision]`.

    Raises:
        CheckpointError: it does not exist, or cannot be had from the hub.
    """
    text = str(spec)
    if text.startswith("hf:"):
        return _from_hub(text)
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            return Location(path)
        if path.is_file():
            return Location(path.parent, weights_file=path)
        exists = path.exists()
    except (OSError, ValueError) as error:  # a null byte, a name too long, a folder that may not be read
        raise CheckpointError(text, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if exists:
        raise CheckpointError(text, "is neither a folder nor a file")
    remedy = "Give the folder of a checkpoint."
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        remedy = f"Give the folder of a checkpoint, or hf://{text} for a model on the hub."
    raise CheckpointError(text, "no such file or folder", remedy)


def _from_hub(text: str) -> Location:
    match = _HUB.fullmatch(text)
    if match is None or ".." in text:
        raise CheckpointError(text, "is not the address of a model", "Write hf://org/name or hf://org/name@revision.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(match["name"], revision=match["revision"]))
    except HFValidationError as error:
        raise CheckpointError(text, "is not the address of a model", "Write hf://org/name[@revision].") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(text, "the hub cannot be reached, and there is no copy here") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        remedy = "Check the name and the revision; a private model needs HF_TOKEN."
        raise CheckpointError(text, f"the hub does not give it ({status} response)", remedy) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(text, f"cannot be downloaded ({type(error).__name__})") from error
    # The cache keeps each snapshot in a folder named by its commit.
    return Location(folder, revision=folder.name)
