"""A caption: the UTF-8 bytes of its words, or token ids of anybody's tokenizer."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, Integer

from vqgan_jax import pictures
from vqgan_jax.conditions.base import Condition, Grid, HostTokens, Params, Pictures, Size, check_range, in_range
from vqgan_jax.data.folder import CAPTIONS, read_captions
from vqgan_jax.data.views import Cut, View

NUM_BYTES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Condition):
    """Captions, from "text", all of one length: behind the last token of a caption stands padding.

    The tokens are bytes or ids, then the padding token, then, where it may be dropped, the null token: a caption that
    was dropped consists of null tokens alone.
    """

    kind = field = "text"
    argument = "condition"
    files = CAPTIONS

    max_tokens: int = 128  # of a caption; longer captions of the data are cut
    num_ids: int = 0  # token ids of a tokenizer of yours are below this; 0 is UTF-8 bytes

    @property
    def length(self) -> int:
        """That of every caption."""
        return self.max_tokens

    @property
    def padding(self) -> int:
        """The token behind the end of a caption."""
        return self.num_ids or NUM_BYTES

    @property
    def num_values(self) -> int:
        """Bytes or ids, and the padding."""
        return self.padding + 1

    def check(self) -> None:
        """Raises ValueError for captions without tokens, or fewer ids than none."""
        if self.max_tokens < 1 or self.num_ids < 0:
            raise ValueError(
                "`config.condition.max_tokens` must be positive and `config.condition.num_ids` not negative; got "
                f"{self.max_tokens} and {self.num_ids}. Correct them."
            )
        super().check()

    def views(self, data: Any) -> dict[str, View]:
        """Returns one of an image's captions, by chance; in evaluation the same one every time."""
        return {self.field: self._view}

    def _view(self, cut: Cut) -> Int32[np.ndarray, "s"]:
        captions = cut.field("text")()
        if not len(captions):
            raise ValueError("every image must have a caption, which the config asks for; this one has none. Add one.")
        return self.row(captions[cut.rng.integers(len(captions))], cut=True)

    def row(self, caption: str | Integer[np.ndarray, "t"], *, cut: bool = False) -> Int32[np.ndarray, "s"]:
        """Returns the tokens of one caption, text or ids, padded.

        Raises:
          ValueError: text for a prior of ids, ids out of range, or a caption that is too long and not to be `cut`.
        """
        if isinstance(caption, str):
            if self.num_ids:
                raise ValueError(
                    f"a caption must be token ids in [0, {self.num_ids}), as condition.num_ids says; got the text "
                    f"{caption[:40]!r}. Give the ids, or set condition.num_ids to 0."
                )
            ids = np.frombuffer(caption.encode(), np.uint8).astype(np.int32)
        else:
            check_range("condition", caption, self.num_values)
            ids = caption.astype(np.int32)
        if len(ids) > self.max_tokens and not cut:
            raise ValueError(
                f"a caption must have at most {self.max_tokens} tokens, condition.max_tokens; got {len(ids)} of "
                f"{caption[:40]!r}. Shorten it."
            )
        return np.append(ids, np.full(self.max_tokens, self.padding, np.int32))[: self.max_tokens]

    def tokens(self, frozen: Params, value: Any, grid: Grid, origins: np.ndarray | None) -> Int[Array, "b s"]:
        """Returns the tokens of captions, the same for every window: of texts, or of ids b s, which are padded."""
        if isinstance(value, list | tuple) and value and all(isinstance(text, str) for text in value):
            return jnp.asarray(np.stack([self.row(text) for text in value]))
        shape, dtype = np.shape(value), getattr(value, "dtype", np.dtype(object))
        if not jnp.issubdtype(dtype, jnp.integer) or len(shape) != 2 or shape[1] > self.max_tokens:
            raise ValueError(
                "`condition` must be the text of each image, a list of captions or integers of shape (b, s), s up to "
                f"{self.max_tokens}; got {type(value).__name__} of shape {shape}. Put a single one in a list."
            )
        tokens, padding = in_range("condition", value, self.num_values), ((0, 0), (0, self.max_tokens - shape[1]))
        return jnp.pad(tokens, padding, constant_values=self.padding)

    def read(self, names: Sequence[str], size: Size, data: Any) -> Int32[np.ndarray, "n s"]:
        """Returns the tokens of captions, and of those in files.

        What ends in .txt or .npy is a file, all else is a caption.

        Raises:
          ValueError: a file of another kind, or captions that this condition cannot be.
        """
        captions: list[Any] = []
        for name in names:
            if os.path.splitext(name)[1] in CAPTIONS:
                captions.extend(read_captions(name))
            elif os.path.exists(name):
                raise ValueError(
                    f"a file of captions must end in {' or '.join(CAPTIONS)}; {name} does not. Rename it, or, if it is "
                    "meant as a caption, write it into such a file."
                )
            else:
                captions.append(name)
        return np.stack([self.row(caption) for caption in captions])

    def picture(self, frozen: Params, tokens: HostTokens, size: int, names: Sequence[str] = ()) -> Pictures:
        """Returns the words, or the numbers of ids."""
        return np.stack([pictures.words(self.words(row), size) for row in tokens])

    def words(self, row: Int[np.ndarray, "s"]) -> str:
        """Returns what a row of tokens says; nothing for a caption that was dropped."""
        ids = row[row < self.padding]
        return " ".join(map(str, ids)) if self.num_ids else bytes(ids.astype(np.uint8)).decode(errors="replace")
