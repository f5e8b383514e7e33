"""A student that sees: text rendered in a bitmap font, columns of pixels as tokens of a BERT.

Shape letters: B rows, H pixels of height, C patches, P pixels of a patch, D hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel

from edgeslm.encoders.transformer import bert_config, bert_sizes
from edgeslm.errors import DataError
from edgeslm.knowledge.base import Sizes

HEIGHT = 12


def render(texts: list[str], columns: int, patch: int, jitter: int, seed: int) -> Tensor:
    """uint8 [R, HEIGHT, columns * patch], ink 1 on ground 0, in Pillow's bitmap font; each picture starts at its own
    offset below or at `jitter`. Raises DataError where Pillow is missing."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise DataError("a student of pixels needs Pillow to draw text; install pillow") from error
    font = ImageFont.load_default_imagefont()
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(jitter + 1, (len(texts),), generator=generator).tolist()
    made = torch.zeros(len(texts), HEIGHT, columns * patch, dtype=torch.uint8)
    for row, (text, offset) in enumerate(zip(texts, offsets, strict=True)):
        picture = Image.new("1", (columns * patch, HEIGHT))
        plain = text.encode("latin-1", "replace").decode("latin-1")  # all that the font has
        ImageDraw.Draw(picture).text((offset, 0), plain, fill=1, font=font)
        bits = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8)
        made[row] = (bits.reshape(HEIGHT, -1) > 0).to(torch.uint8)
    return made


class PixelBody(nn.Module):
    """`config`: {patch, bert: a BERT's config}. A patch without ink after the last one with ink is padding."""

    reads = ("pixels",)

    def __init__(self, config: dict[str, Any], attention: str = "sdpa"):
        super().__init__()
        self.size = config["patch"]
        made = bert_config(config["bert"], attention)
        self.patches = nn.Linear(HEIGHT * self.size, made.hidden_size)
        self.bert = BertModel(made, add_pooling_layer=False)
        self.bert.embeddings.word_embeddings = None  # patches stand in its place

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.bert.encoder.layer)

    @property
    def sizes(self) -> Sizes:
        return bert_sizes(self.bert.config)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels [B, H, C P] of 0 and 1 -> (hidden [B, C, D], mask [B, C])."""
        count = pixels.shape[2] // self.size  # shapes spelled out: a traced graph keeps B free
        cut = pixels.float().reshape(-1, HEIGHT, count, self.size).transpose(1, 2)  # [B, C, H, P]
        cut = cut.reshape(-1, count, HEIGHT * self.size)
        ink = cut.amax(dim=2)
        mask = ink.flip(1).cumsum(1).flip(1).clamp(max=1)  # 1 up to the last patch with ink
        types = torch.zeros_like(mask, dtype=torch.long)
        out = self.bert(inputs_embeds=self.patches(cut), attention_mask=mask, token_type_ids=types)
        return out.last_hidden_state, mask
