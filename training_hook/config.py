"""The shape of a hybrid model, in the field names of Hugging Face's `nemotron_h` configuration.

One letter of `hybrid_override_pattern` is one layer, and nothing else decides what is built. Every
dimension is free: the width of a Mamba layer is mamba_num_heads * mamba_head_dim and never a
multiple of hidden_size (Nemotron Nano 2 9B: 128 * 80 = 10,240 on a hidden size of 4,480).
"""

from dataclasses import dataclass, fields

LETTERS = {"M": "Mamba-2", "-": "MLP", "*": "attention"}
POSITION_EMBEDDINGS = ("nope", "rope")


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """Sizes, numerics and initialization of a hybrid model.

    Raises:
        ValueError: an unknown letter, a size below one, heads that do not divide into groups.
    """

    hybrid_override_pattern: str
    """One letter a layer: M Mamba-2, - MLP, * attention."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    """Width of the MLP layers."""
    num_attention_heads: int
    num_key_value_heads: int
    """num_attention_heads / num_key_value_heads queries share a key and value head."""
    head_dim: int
    """Of attention heads."""
    mamba_num_heads: int
    mamba_head_dim: int
    n_groups: int
    """mamba_num_heads / n_groups heads share B and C; also the groups of the gated norm."""
    ssm_state_size: int
    conv_kernel: int = 4
    chunk_size: int = 128
    """Positions in a chunk of the scan: speed, not meaning. 64 is faster on a CPU."""
    max_position_embeddings: int = 8192
    """Longest context promised to servers."""
    position_embedding_type: str = "nope"
    """Of attention: "nope" (none, as in every nemotron_h), or "rope" for a Transformer to compare
    with, which is not exported."""
    rope_theta: float = 10_000.0
    """Base of the angles of "rope"."""
    tie_word_embeddings: bool = False
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    rescale_prenorm_residual: bool = True
    """Divides projections into the residual by sqrt(number of layers) at the start."""
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    """The three bound the time steps of a fresh model; training moves freely from there."""

    def __post_init__(self) -> None:
        pattern = self.hybrid_override_pattern
        known = ", ".join(f"{letter!r} ({name})" for letter, name in LETTERS.items())
        if not pattern:
            raise ValueError(
                f"HybridConfig: hybrid_override_pattern is empty; give a letter a layer: {known}"
            )
        for position, letter in enumerate(pattern):
            if letter not in LETTERS:
                raise ValueError(
                    f"HybridConfig: hybrid_override_pattern has {letter!r} at layer {position}; "
                    f"known letters: {known}"
                )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"HybridConfig: {field.name} is {value!r}; it must be a whole number above 0"
                )
        self._check_multiple("num_attention_heads", "num_key_value_heads")
        self._check_multiple("mamba_num_heads", "n_groups")
        self._check_positions()
        if not 0 < self.time_step_min <= self.time_step_max:
            raise ValueError(
                f"HybridConfig: time_step_min is {self.time_step_min} and time_step_max is "
                f"{self.time_step_max}; wanted 0 < time_step_min <= time_step_max"
            )

    def _check_multiple(self, heads: str, groups: str) -> None:
        if getattr(self, heads) % getattr(self, groups):
            raise ValueError(
                f"HybridConfig: {heads} is {getattr(self, heads)} and {groups} is "
                f"{getattr(self, groups)}; the heads must divide into the groups"
            )

    def _check_positions(self) -> None:
        if self.position_embedding_type not in POSITION_EMBEDDINGS:
            raise ValueError(
                f"HybridConfig: position_embedding_type is {self.position_embedding_type!r}; "
                f"wanted one of: {', '.join(POSITION_EMBEDDINGS)}"
            )
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(
                f"HybridConfig: head_dim is {self.head_dim}; rope wants an even number"
            )
        if not self.rope_theta > 0:
            raise ValueError(f"HybridConfig: rope_theta is {self.rope_theta}; wanted above 0")

    @property
    def num_hidden_layers(self) -> int:
        """The number of letters."""
        return len(self.hybrid_override_pattern)

    @property
    def residual_initializer_range(self) -> float:
        """Spread of the projections into the residual stream at the start."""
        depth = self.num_hidden_layers if self.rescale_prenorm_residual else 1
        return self.initializer_range / depth**0.5

    @property
    def mamba_inner_size(self) -> int:
        """Channels of the scan."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def convolution_size(self) -> int:
        """Channels of the causal convolution: x, B and C side by side."""
        return self.mamba_inner_size + 2 * self.n_groups * self.ssm_state_size
