"""A closed-vocabulary word encoder, trained along with a model and shipped beside it.

``model.words.safetensors`` beside ``model.safetensors`` holds its weights, and its vocabulary as
metadata. Words outside the vocabulary are an error: a small model would draw something anyway.

Shapes: B prompts, T words of the longest one, C width.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint.finite import check_finite
from ..checkpoint.weights import MOST_BLOCKS
from ..errors import FAULTS, CheckpointError, StagevarError, one_line
from ..model.inputs import prompts as checked_prompts

SUFFIX = ".words.safetensors"
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_LISTED = 60  # words that an error lists at most


def split_words(text: str) -> list[str]:
    """The words of a text: letters and digits of any script, hyphens and apostrophes inside.

    What is neither punctuation nor space stands for itself (an emoji, an accent), so that no part
    of a prompt is passed over.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    words: list[str] = []
    end = 0
    for match in _WORD.finditer(text):
        words += [*_symbols(text[end : match.start()]), match[0]]
        end = match.end()
    return words + _symbols(text[end:])


def _symbols(between: str) -> list[str]:
    """Characters that are no punctuation, space or control character."""
    return [c for c in between if unicodedata.category(c)[0] not in "PZC"]


class _Block(nn.Module):
    """Self-attention and feed-forward, normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class WordEncoder(nn.Module):
    """Words of a fixed list to features. ``vocabulary`` is the list, without padding."""

    def __init__(
        self, vocabulary: Sequence[str], length: int, width: int, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.vocabulary = tuple(vocabulary)
        self.numbers = {word: i for i, word in enumerate(self.vocabulary)}
        self.embedding = nn.Embedding(len(self.vocabulary), width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def numbered(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word numbers ``(B, T)``, and the mask ``(B, T)``, true where a word is.

        Raises:
            StagevarError: a prompt is empty, too long, or has a word that is not in the list.
        """
        rows = [self._numbers(prompt) for prompt in checked_prompts(prompts)]
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        return ids, mask

    def _numbers(self, prompt: str) -> list[int]:
        words = split_words(prompt)
        for word in words:
            if word not in self.numbers:
                near = difflib.get_close_matches(word, self.vocabulary, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else self._known()
                raise StagevarError(f"prompt {prompt!r}: this model knows no word {word!r}; {hint}")
        if not 0 < len(words) <= len(self.position):
            raise StagevarError(
                f"prompt {prompt!r} has {len(words)} words, expected 1 to {len(self.position)}"
            )
        return [self.numbers[word] for word in words]

    def _known(self) -> str:
        words, more = self.vocabulary, len(self.vocabulary) - _LISTED
        if more <= 0:
            return f"it knows {', '.join(words)}"
        return f"it knows {', '.join(words[:_LISTED])} and {more} more"

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Features ``(B, T, C)`` of word numbers ``(B, T)``, zero where the mask is false."""
        x = self.embedding(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).masked_fill(~mask[..., None], 0.0)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What Infinity's ``condition`` takes: ``text`` ``(B, T, C)`` and ``mask`` ``(B, T)``."""
        ids, mask = self.numbered(prompts)
        device = self.position.device
        ids, mask = ids.to(device), mask.to(device)
        return {"text": self(ids, mask), "mask": mask}


def words_beside(checkpoint: Path) -> Path | None:
    """``model.words.safetensors`` beside ``model.safetensors``, if there is one."""
    path = checkpoint.with_suffix(SUFFIX)
    return path if checkpoint.is_file() and path.is_file() else None


def save_words(path: Path, encoder: WordEncoder) -> None:
    """Write an encoder, in half precision, with its vocabulary."""
    from safetensors.torch import save_file

    tensors = {n: t.detach().cpu().half().contiguous() for n, t in encoder.state_dict().items()}
    heads = str(encoder.blocks[0].heads if len(encoder.blocks) else 1)
    metadata = {"vocabulary": json.dumps(encoder.vocabulary), "heads": heads}
    save_file(tensors, str(path), metadata)


def load_words(path: Path, device: torch.device | str = "cpu") -> WordEncoder:
    """Read what :func:`save_words` wrote, ready for inference.

    Raises:
        CheckpointError: it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
        length, width = tensors["position"].shape
        depth = 1 + max((int(n.split(".")[1]) for n in tensors if n[:7] == "blocks."), default=-1)
        vocabulary, heads = json.loads(metadata["vocabulary"]), int(metadata["heads"])
        if not isinstance(vocabulary, list) or not all(isinstance(w, str) for w in vocabulary):
            raise ValueError("its vocabulary is no list of words")
        if depth > MOST_BLOCKS or not 0 < heads <= width or width % heads:
            raise ValueError(f"{depth} blocks of {heads} heads, {width} wide")
        with torch.device("meta"):  # what the file says takes no memory before it is believed
            encoder = WordEncoder(vocabulary, length, width, depth, heads)
        encoder.load_state_dict(tensors, assign=True)
    except (SafetensorError, OSError, *FAULTS) as error:
        raise CheckpointError(
            f"{path}: not a word encoder ({one_line(error, named=False)}), expected the "
            f"*{SUFFIX} file that came with the checkpoint"
        ) from error
    check_finite(tensors, path)
    return encoder.to(device).eval().requires_grad_(False)
