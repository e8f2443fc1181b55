"""How many samples each phase draws from each part, how often that repeats it, and the limits."""

from typing import TYPE_CHECKING, Any

from mixtures.schedule import CYCLE, Schedule, apportion, make_schedule

if TYPE_CHECKING:
    from mixtures.mixture import Mixture


def resolve(mixture: "Mixture", num_packs: list[int], seed: int) -> dict[str, Any]:
    """Counts what a mixture draws.

    Args:
        mixture: parts, weights and phases.
        num_packs: packs of each part.
        seed: of every order.

    Returns:
        num_samples; repetitions (of each part); phases (name, start, stop, samples of each part in
        a cycle); table (a row for each phase and part).

    Raises:
        ValueError: a part's share is too small to draw from it, or it would be seen more often
            than its max_repetition.
    """
    names = [part.name for part in mixture.parts]
    weights = []
    for phase in mixture.stages:
        wanted = dict(phase.weights)
        weights.append(apportion([wanted.get(name, 0.0) for name in names], CYCLE))
        for name, count in zip(names, weights[-1], strict=True):
            if wanted.get(name, 0.0) > 0 and not count:
                raise ValueError(
                    f"{mixture.name}: in phase {phase.name} part {name} gets less than one in "
                    f"{CYCLE:,} samples. Raise its weight to {1 / CYCLE:.1g} of the sum or leave "
                    f"it out."
                )
    most = _most_samples(mixture, weights, num_packs, seed)
    num_samples = most if mixture.num_samples is None else mixture.num_samples
    schedule = _schedule(mixture, weights, num_packs, num_samples, seed)
    repetitions = [
        int(draws) / packs for draws, packs in zip(schedule.base[-1], num_packs, strict=True)
    ]
    if num_samples > most:
        worst = max(
            range(len(names)), key=lambda i: repetitions[i] / mixture.parts[i].max_repetition
        )
        raise ValueError(
            f"{mixture.name}: {num_samples:,} samples would show part {names[worst]} "
            f"({num_packs[worst]:,} packs) {repetitions[worst]:.2f} times, max_repetition is "
            f"{mixture.parts[worst].max_repetition:g}; at most {most:,} samples keep every cap. "
            f"Lower num_samples or its weight, raise max_repetition, or add data."
        )
    return {
        "num_samples": num_samples,
        "repetitions": repetitions,
        "phases": [
            {
                "name": phase.name,
                "start": int(schedule.starts[number]),
                "stop": int(schedule.starts[number + 1]),
                "cycle": weights[number],
            }
            for number, phase in enumerate(mixture.stages)
        ],
        "table": [
            {
                "phase": phase.name,
                "part": name,
                "weight": weights[number][column] / CYCLE,
                "samples": int(schedule.draws[number, column]),
                "tokens": int(schedule.draws[number, column]) * mixture.sequence_length,
                "epochs": int(schedule.draws[number, column]) / num_packs[column],
            }
            for number, phase in enumerate(mixture.stages)
            for column, name in enumerate(names)
        ],
    }


def _most_samples(
    mixture: "Mixture", weights: list[list[int]], num_packs: list[int], seed: int
) -> int:
    """Returns the largest number of samples (to within one or two) that keeps every cap.

    Raises:
        ValueError: a part may not be drawn from at all.
    """
    caps = []
    for part, packs in zip(mixture.parts, num_packs, strict=True):
        caps.append(int(part.max_repetition * packs))
        if not caps[-1]:
            raise ValueError(
                f"{mixture.name}: part {part.name} has {packs:,} packs; a max_repetition of "
                f"{part.max_repetition:g} allows none of them. Raise it or add data."
            )
    whole = sum(phase.share for phase in mixture.stages)
    shares = [
        sum(phase.share * row[i] for phase, row in zip(mixture.stages, weights, strict=True))
        / (whole * CYCLE)
        for i in range(len(caps))
    ]
    # each phase draws its exact share to within two samples: rounded length, rounded quota
    slack = 2 * len(weights)
    low = max(0, int(min((c - slack) / s for c, s in zip(caps, shares, strict=True))))
    high = int(min((c + slack) / s for c, s in zip(caps, shares, strict=True))) + 1
    while high - low > 1:
        middle = (low + high) // 2
        drawn = _schedule(mixture, weights, num_packs, middle, seed).base[-1]
        if all(int(count) <= cap for count, cap in zip(drawn, caps, strict=True)):
            low = middle
        else:
            high = middle
    return low


def _schedule(
    mixture: "Mixture",
    weights: list[list[int]],
    num_packs: list[int],
    num_samples: int,
    seed: int,
) -> Schedule:
    lengths = apportion([phase.share for phase in mixture.stages], num_samples)
    return make_schedule(weights, lengths, num_packs, [part.name for part in mixture.parts], seed)
