"""The names of the ways in which a layer's products with weights can run, without torch.

Run configurations name a recipe, and are read where nothing is trained; the recipes themselves are
in `linear` and `fp8`.
"""

MULTIPLES = {
    "plain": 1,
    "fp8_tensor": 16,
    "fp8_tensor_e4m3": 16,
    "fp8_delayed": 16,
    "fp8_block": 128,
}
"""Recipe to what divides every dimension of its products: cuBLAS takes FP8 in 16 values at least,
and a scale of the block recipe covers 128."""

PRODUCT_BYTES = {recipe: 1 for recipe in MULTIPLES if recipe != "plain"}
"""FP8 recipe to the bytes of a value of a product's input that is kept for the backward pass."""


def check_recipe(recipe: str) -> None:
    """Checks that a recipe is known.

    Raises:
        ValueError: it is not.
    """
    if recipe not in MULTIPLES:
        raise ValueError(f"linear recipe is {recipe!r}; known recipes: {', '.join(MULTIPLES)}")
