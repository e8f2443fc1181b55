"""Our GPU kernels beside the compiled plain forms of the same layers: errors, times, TB/s.

    OUT=DIR python -m benchmarks.kernels_gpu [--commit HASH] [--only convolution] [--sweep]
    python -m benchmarks.kernels_gpu --tiny     (tiny shapes on the CPU, in Triton's interpreter)

Needs torch and triton, and what the package itself imports. Sections, each in
$OUT/kernels_gpu.json as soon as it is done, are the layers; the inputs are BF16 column slices of a
wider projection, as a Mamba-2 layer has them. Errors are relative, in norm, against FP64. With
--sweep some configurations of each kernel are timed as well, to choose the constants by.

A section that fails is recorded with its traceback and the next one runs, since a GPU is hired by
the minute; the exit code is then 1.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fp8_gpu import Report, free
from benchmarks.kernel_cases import Case, Choice, Draw, measure, sweep
from benchmarks.training_steps import find_commit, versions
from pipelines.progress import say
from training_hook.convolution import plain_convolution
from training_hook.device import device_name
from training_hook.kernels.convolution_operators import convolve
from training_hook.kernels.norm_operators import gated_norm
from training_hook.norm import plain_gated_norm


class Section(NamedTuple):
    cases: Callable[[Draw, bool], Iterator[Case]]
    """From a function that draws BF16 tensors, and whether shapes are tiny."""
    choices: Callable[[Draw, bool], Iterator[Choice]]


def convolution_inputs(draw: Draw, tiny: bool, packed: bool) -> dict[str, Any]:
    """x of the 1.05 B hybrid: (2, 8192, 6144) in rows of 10,304."""
    batch, length, channels, before, after = (
        (2, 40, 96, 32, 8) if tiny else (2, 8192, 6144, 4096, 64)
    )
    projected = draw(batch, length, before + channels + after)
    x = projected[..., before : before + channels]
    document = torch.arange(length, device=x.device, dtype=torch.int32) // (length // 8)
    return {
        "x": x,
        "weight": draw(channels, 1, 4).float() / 2,
        "bias": draw(channels).float() / 2,
        "document_ids": document.expand(batch, -1).contiguous() if packed else None,
        "initial_state": None,
    }


def convolution_cases(draw: Draw, tiny: bool) -> Iterator[Case]:
    for packed in (False, True):
        inputs = convolution_inputs(draw, tiny, packed)
        x, name = inputs["x"], "packed documents" if packed else "one document"
        size = x.numel() * x.element_size()
        moved = 2 * size, 5 * size
        yield Case(name, convolve, plain_convolution, inputs, draw(*x.shape), moved)


def convolution_choices(draw: Draw, tiny: bool) -> Iterator[Choice]:
    from training_hook.kernels import convolution_backward_kernels, convolution_kernels

    inputs = tuple(convolution_inputs(draw, tiny, packed=True).values())
    dy = draw(*inputs[0].shape)
    size = dy.numel() * dy.element_size()
    walk = convolution_kernels.Walk
    for channels, rows, chunk, warps in (
        (256, 32, 4, 1),
        (256, 64, 4, 1),
        (256, 128, 4, 1),
        (256, 64, 8, 1),
        (128, 64, 8, 1),
        (512, 64, 4, 4),
    ):
        choice = walk(channels, rows, chunk, warps)
        run = partial(convolution_kernels.forward, *inputs, walk=choice)
        yield Choice(f"forward {tuple(choice)}", run, 2 * size)
    for channels, rows, chunk, warps in (
        (256, 64, 2, 1),
        (256, 128, 2, 1),
        (256, 128, 4, 1),
        (128, 64, 4, 1),
        (128, 128, 2, 1),
        (128, 128, 4, 1),
        (128, 256, 8, 1),
        (64, 128, 4, 1),
    ):
        choice = walk(channels, rows, chunk, warps)
        run = partial(convolution_backward_kernels.backward, dy, *inputs, walk=choice)
        yield Choice(f"backward {tuple(choice)}", run, 3 * size)


def norm_inputs(draw: Draw, tokens: int, size: int, groups: int) -> dict[str, Any]:
    projected = draw(tokens, 2 * size + 64)
    return {
        "x": draw(tokens, size),
        "gate": projected[:, :size],
        "weight": draw(size).float(),
        "groups": groups,
        "epsilon": 1e-5,
    }


def gated_norm_alone(*inputs: Any) -> Tensor:
    return gated_norm(*inputs)[0]


def norm_cases(draw: Draw, tiny: bool) -> Iterator[Case]:
    for tokens, size, groups in (
        ((20, 480, 2),) if tiny else ((16_384, 4096, 8), (16_384, 10_240, 8))
    ):
        inputs, dy = norm_inputs(draw, tokens, size, groups), draw(tokens, size)
        moved = dy.numel() * dy.element_size()
        name = f"{tokens} x {size}, {groups} groups"
        yield Case(name, gated_norm_alone, plain_gated_norm, inputs, dy, (3 * moved, 8 * moved))


def norm_choices(draw: Draw, tiny: bool) -> Iterator[Choice]:
    from training_hook.kernels import norm_kernels

    for tokens, size, groups in (
        ((20, 480, 2),) if tiny else ((16_384, 4096, 8), (16_384, 10_240, 8))
    ):
        inputs, dy = tuple(norm_inputs(draw, tokens, size, groups).values()), draw(tokens, size)
        inverse, moved = norm_kernels.forward(*inputs)[1], dy.numel() * dy.element_size()
        lane = size // groups // 32  # a row's values in each lane of a single warp
        for rows, values in product((4, 16), (lane, lane // 2)):
            walk = norm_kernels.Walk(rows, values)
            run = partial(norm_kernels.forward, *inputs, walk=walk)
            yield Choice(f"{size} forward {tuple(walk)}", run, 3 * moved)
        for rows, values in product((16, 64), (lane, lane // 2)):
            walk = norm_kernels.Walk(rows, values)
            run = partial(norm_kernels.backward, dy, *inputs[:3], inverse, walk=walk)
            yield Choice(f"{size} backward {tuple(walk)}", run, 5 * moved)


SECTIONS = {
    "convolution": Section(convolution_cases, convolution_choices),
    "norm": Section(norm_cases, norm_choices),
}


def drawing(device: torch.device) -> Draw:
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    return draw


def main() -> int:
    parser = argparse.ArgumentParser(description="Our GPU kernels beside compiled plain forms.")
    parser.add_argument("--commit", help="commit of this tree, where git cannot be asked")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--sweep", action="store_true", help="time other configurations, too")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on the CPU")
    options = parser.parse_args()
    if options.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("no GPU here: give --tiny to try the script with tiny shapes")
    device = torch.device("cpu") if options.tiny else torch.device("cuda", 0)
    head = {
        "what": "GPU kernels beside compiled plain forms of the same layers",
        "commit": find_commit(options.commit),
        "device": device_name(device),
        "cuda": torch.version.cuda,
        "versions": versions(),
    }
    report = Report(Path(os.environ.get("OUT", ".")) / "kernels_gpu.json", head)
    report.write()
    for name in options.only:
        section = SECTIONS[name]
        place: dict[str, Any] = report.content.setdefault(name, {})
        for case in section.cases(drawing(device), options.tiny):
            say(f"{name}: {case.name}")
            report.add(place, case.name, partial(measure, case, device))
            free(device)
        if options.sweep:
            choices = section.choices(drawing(device), options.tiny)
            report.add(place, "sweep", partial(sweep, choices, device))
            free(device)
    say(f"written: {report.path}, {report.content['wall_s']} s in all")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
