"""Compiled functions that load numba when the first of them is called.

Numba takes half a second to import and another one for its first call. A process that only plans,
asks or reports pays neither, though it imports the steps; workers do it once, in the fork server.
Compiled code is cached on disk; numba's cache watches one file only, so a kernel uses no constant
and calls no kernel of another file.
"""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

from pipelines.absent import absent


class _Kernel:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: Callable[..., Any] | None = None
        update_wrapper(self, function)

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            self._compile_file()
            assert self._compiled is not None
        return self._compiled(*arguments)

    def _compile_file(self) -> None:
        """Compiles all kernels of the file: they call each other."""
        import numba

        with absent("scipy.linalg"):  # 0.4 s, for products of matrices in compiled code
            import numba.np.arraymath
        names = self._function.__globals__
        for name, found in list(names.items()):
            if isinstance(found, _Kernel) and found._function.__globals__ is names:
                decorate = numba.njit(cache=True, nogil=True, error_model="numpy")
                found._compiled = names[name] = decorate(found._function)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function at its first call, by numba, without fastmath and with the GIL free."""
    return _Kernel(function)
