"""The frame tokenizers: of things, which learned from the simulator's labels, and of patches, which needed none."""

from pathlib import Path

from dzedge.export import checkpoint
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.vae import Vae

AnyTokenizer = Tokenizer | Vae


def built(sizes: Sizes) -> AnyTokenizer:
    """An untrained one of the kind that `sizes` name."""
    return Tokenizer(sizes) if sizes.structured else Vae(sizes)


def load(path: Path) -> AnyTokenizer:
    """The averaged weights of a checkpoint of either kind. Raises UsageError."""
    return checkpoint.averaged(path, built)
