"""A model's tokenizer without its weights."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from edgeslm.models import packed
from edgeslm.models.gguf_vocab import tokenizer_from_metadata
from edgeslm.models.source import Source


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """Raises ModelError when the source carries none or one that is not known. An adapter may bring its base's with
    another chat template; it is the one that the adapter was trained with."""
    if source.base is not None:
        own = (source.path / "tokenizer_config.json").is_file()
        return (
            AutoTokenizer.from_pretrained(source.path, trust_remote_code=False) if own else load_tokenizer(source.base)
        )
    if source.kind == "folder":
        return AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    return tokenizer_from_metadata(packed.open_file(source).metadata, str(source.path))
