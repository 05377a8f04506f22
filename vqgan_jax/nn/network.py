"""What a prior asks of its network: tokens to logits of the next one, of whole sequences and one token at a time."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vqgan_jax.nn.fields import derived

Place = tuple[int, int]  # row and column in the grid of codes


class PriorNetwork(nn.Module, kw_only=True):
    """The interface of all networks of priors. A kind is one class and one line of `config.NETWORKS`. A class adds

    - fields of its own, which are keys of the config's section `transformer`;
    - `__call__(tokens, *, places=None, at=None, train=False)`, from tokens (b t) to float32 logits (b t v) of the token
      after each, which depend on no later token;
    - `summary`, a line for people.

    `prepare`, `prefill` and `step` draw one token after the other. Here every step runs the network over the whole
    sequence: a network that can keep what it computed overrides all three.

    Attributes:
      order: in which codes are tokens, a name of `ordering.ORDERS`.
      max_len: longest input: prefix and tokens, without the last one; in a config 0 is as long as needed.
      dtype: of products and activations; logits are float32.
      vocab_size: tokens that can be predicted.
      extra_vocab: rows of the embedding behind the vocabulary, for a prefix that shares no row with the codes.
      rows: how a whole forward pass lies on the devices: cut like the batch. Left to itself XLA's partitioner follows
        the embedding, which FSDP cuts along its width, and every layer sums activations over the devices.
    """

    takes_muon = False  # whether there are matrices of layers, which Muon moves

    order: str = "raster"
    max_len: int = 0
    dtype: DTypeLike = "bfloat16"
    vocab_size: int = derived(0)
    extra_vocab: int = derived(0)
    rows: jax.sharding.NamedSharding | None = derived(None)

    @property
    def summary(self) -> str:
        """Returns its size in a few words."""
        raise NotImplementedError

    @property
    def takes_places(self) -> bool:
        """Returns whether the first tokens of each example stand where the argument `places` says."""
        return False

    @property
    def takes_order(self) -> bool:
        """Returns whether the tokens of each example may come in any order, which the argument `at` says."""
        return False

    def bind(self, *, vocab_size: int, extra_vocab: int, prefix: list[Place], codes: list[Place]) -> "PriorNetwork":
        """Returns the network of a run.

        Args:
          vocab_size, extra_vocab: see the class.
          prefix: where each token of the condition stands.
          codes: where each code stands, in order.

        Raises:
          ValueError: the network cannot learn such sequences.
        """
        longest = len(prefix) + len(codes) - 1  # the last token is never an input
        return self.clone(
            vocab_size=vocab_size,
            extra_vocab=extra_vocab,
            max_len=self.max_len or longest,
            dtype=jnp.dtype(self.dtype),
        )

    def without_remat(self) -> "PriorNetwork":
        """Returns the network that computes nothing twice in a backward pass."""
        return self

    def on_this_platform(self, run: Callable[["PriorNetwork"], Any]) -> Any:
        """Returns `run` of the form of the network that is fastest where the program will run; here of itself.

        `run` prefills and steps: what these hold may have other shapes on another platform.
        """
        return run(self)

    def prepare(self, params: dict[str, Any]) -> Any:
        """Returns parameters as `prefill` and `step` take them; do it once, outside the loop over tokens."""
        return params

    def prefill(
        self,
        weights: Any,
        prefix: Int[Array, "b s"],
        length: int,
        places: Float[Array, "b p 2"] | None = None,
        last: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b v"], Any]:
        """Runs the whole prefix.

        Args:
          weights: from `prepare`.
          prefix: the condition's tokens, and codes behind them; at least one.
          length: positions that `step` will reach.
          places: where the first tokens of each example stand; only of a network that `takes_places`.
          last: position of the last token that counts, by default that of the last one. `step` writes over those
            behind it before anything sees them.

        Returns:
          Logits of the token after the last one that counts, and what `step` needs of the sequence so far.
        """
        tokens = jnp.pad(prefix, ((0, 0), (0, length - prefix.shape[1])))
        last = jnp.asarray(prefix.shape[1] - 1) if last is None else last
        return self._logits_at(weights, tokens, places, last), (tokens, places)

    def step(
        self, weights: Any, cache: Any, tokens: Int[Array, "b"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "b v"], Any]:
        """Feeds one token at `position`, behind the prefix.

        Returns:
          Logits of the next token, and the cache with this one in it.
        """
        sequence, places = cache
        sequence = jax.lax.dynamic_update_slice_in_dim(sequence, tokens[:, None], position, axis=1)
        return self._logits_at(weights, sequence, places, position), (sequence, places)

    def _logits_at(self, weights: Any, tokens: Array, places: Array | None, position: Array) -> Array:
        logits: Any = self.apply({"params": weights}, tokens, places=places)
        return jax.lax.dynamic_index_in_dim(logits, position, axis=1, keepdims=False)
