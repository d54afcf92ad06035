"""The frame tokenizers: of things, which learned from the simulator's labels, and of patches, which needed none."""

from pathlib import Path

from dzedge.export import checkpoint, fit_tokenizer, fit_vae
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.vae import Vae

AnyTokenizer = Tokenizer | Vae


def sizes_of(path: Path) -> Sizes:
    """What a tokenizer's checkpoint was made for. Raises UsageError."""
    return Sizes.from_json(checkpoint.load(path)["sizes"])


def load(path: Path) -> AnyTokenizer:
    """The averaged weights of a checkpoint of either kind. Raises UsageError."""
    return fit_tokenizer.load(path) if sizes_of(path).structured else fit_vae.load(path)
