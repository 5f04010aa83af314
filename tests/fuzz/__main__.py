"""`python -m tests.fuzz`: spoil inputs for some minutes, and count what becomes of them.

The exit code is 1 if one was silently wrong, unclear or crashed; `--case KIND:NUMBER --seed SEED` makes it again.
"""

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from .cases import CRASHED, OUTCOMES, SILENT, UNCLEAR, Maker
from .workers import Named, run_cases

FAULTS = (SILENT, UNCLEAR, CRASHED)
_SHOWN = 4  # cases of each kind and fault


def campaign(
    kinds: Mapping[str, Maker], *, seed: int, seconds: float, cases: Sequence[Named] = (), timeout: float = 20.0
) -> int:
    """Run cases of all kinds in turn, print each fault and a table; the exit code.

    Args:
        kinds: Of inputs.
        seed: All cases follow from it.
        seconds: How long.
        cases: Only these, whatever `seconds`.
        timeout: Seconds after which a case hangs.
    """
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    print(f"seed {seed}; a case is made again by `python -m tests.fuzz --seed {seed} --case KIND:NUMBER`", flush=True)
    for (kind, number), outcome in run_cases(kinds, cases or _in_turn(kinds, seconds), seed, timeout=timeout):
        counts[kind][outcome.outcome] += 1
        fault = outcome.outcome in FAULTS
        if cases or (fault and counts[kind][outcome.outcome] <= _SHOWN):
            print(f"{outcome.outcome}: {kind}:{number}: {outcome.what}: {outcome.detail[:600]}", flush=True)
    print(table(counts))
    return int(any(counts[kind][fault] for kind in kinds for fault in FAULTS))


def _in_turn(kinds: Mapping[str, Maker], seconds: float) -> Iterator[Named]:
    """Kinds of slow cases come as long as others, and so less often; each comes once at least."""
    used = dict.fromkeys(kinds, 0.0)
    end = time.monotonic() + seconds
    numbers = {kind: itertools.count() for kind in kinds}
    while time.monotonic() < end or 0.0 in used.values():
        kind = min(used, key=lambda name: used[name])
        start = time.monotonic()
        yield kind, next(numbers[kind])
        used[kind] += time.monotonic() - start


def table(counts: Mapping[str, Counter[str]]) -> str:
    """The counts of each kind as lines, with their sum."""
    lines = [f"{'kind':28}{'cases':>8}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES)]
    total: Counter[str] = sum(counts.values(), Counter())
    for kind, found in [*counts.items(), ("all", total)]:
        lines.append(f"{kind:28}{found.total():8}" + "".join(f"{found[outcome]:9}" for outcome in OUTCOMES))
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Read the options and run a campaign."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from .kinds import KINDS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="how long")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="all cases follow from it")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be given again")
    parser.add_argument("--case", action="append", default=[], metavar="KIND:NUMBER", help="make this case again")
    given = parser.parse_args(words)
    cases = [(kind, int(number)) for kind, _, number in (case.rpartition(":") for case in given.case)]
    chosen = given.kind or list(dict.fromkeys(kind for kind, _ in cases)) or list(KINDS)
    return campaign({kind: KINDS[kind] for kind in chosen}, seed=given.seed, seconds=given.seconds, cases=cases)


if __name__ == "__main__":
    sys.exit(main())
