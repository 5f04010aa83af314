"""The fuzz command itself: planted faults of each outcome are found, and every kind of input runs."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from tests.fuzz import mutate
from tests.fuzz.__main__ import FAULTS, campaign, main
from tests.fuzz.cases import OUTCOMES, Case, by_command, fault_of_message
from tests.fuzz.kinds import KINDS


def spoilt_number(read):
    """A maker of files that hold a number, of which some are spoilt; `read` is the reader under test."""

    def make(rng: random.Random, folder: Path) -> Case:
        path, number = folder / "number.txt", rng.randrange(100)
        sound = rng.random() < 0.5
        path.write_text(f"{number}" if sound else f"{number}?")

        def wrong(found: int) -> str:
            return "" if sound and found == number else f"read as {found}"

        return Case(path.read_text(), lambda: read(path), [path.name], wrong, sound)

    return make


def good(path: Path) -> int:
    text = path.read_text()
    if not text.isdecimal():
        raise ValueError(f"{path} holds {text!r}, expected is a number")
    return int(text)


def silent(path: Path) -> int:
    return int(path.read_text().strip("?"))


def unclear(path: Path) -> int:
    return int(path.read_text())  # ValueError, but of which file?


def unlisted(path: Path) -> int:
    return {str(number): number for number in range(100)}[path.read_text()]


def stuck(path: Path) -> int:
    if "?" in path.read_text():
        time.sleep(60)
    return int(path.read_text())


def killed(path: Path) -> int:
    if "?" in path.read_text():
        os.kill(os.getpid(), signal.SIGKILL)
    return int(path.read_text())


def counts(printed: str) -> dict[str, dict[str, int]]:
    """Kind -> outcome -> number, from the printed table."""
    lines = re.findall(r"^(\S+) +\d+((?: +\d+){5})$", printed, re.MULTILINE)
    return {kind: dict(zip(OUTCOMES, map(int, numbers.split()), strict=True)) for kind, numbers in lines}


@pytest.mark.parametrize(
    ("reader", "outcome"),
    [(silent, "silent"), (unclear, "unclear"), (unlisted, "unclear"), (stuck, "crashed"), (killed, "crashed")],
)
def test_a_planted_fault_is_found_and_named_by_its_case(capfd, reader, outcome):
    cases = [("number", number) for number in range(8)]
    assert campaign({"number": spoilt_number(reader)}, seed=3, seconds=0, cases=cases, timeout=0.5) == 1
    printed = capfd.readouterr().out
    found = counts(printed)["number"]
    assert found[outcome] > 0 and found["fine"] > 0 and found[outcome] + found["fine"] == 8
    assert "--seed 3 --case KIND:NUMBER" in printed and re.search(rf"^{outcome}: number:\d: ", printed, re.MULTILINE)
    assert campaign({"number": spoilt_number(good)}, seed=3, seconds=0, cases=cases, timeout=5) == 0
    assert counts(capfd.readouterr().out)["number"]["clear"] == found[outcome]  # the same cases from the same seed


def test_a_refused_sound_file_is_a_fault(capfd):
    def strict(path: Path) -> int:
        raise ValueError(f"{path} is not to my taste, whatever it holds")

    assert campaign({"number": spoilt_number(strict)}, seed=3, seconds=0, cases=[("number", n) for n in range(8)]) == 1
    assert "a sound input is refused" in capfd.readouterr().out


def test_a_traceback_of_the_command_line_is_a_crash(capfd, monkeypatch):
    def broken(words):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("tests.fuzz.cases.main", broken)
    make = lambda rng, folder: Case("any", by_command("runs"), ["runs"], lambda found: "")  # noqa: E731
    assert campaign({"command": make}, seed=0, seconds=0, cases=[("command", 0)]) == 1
    assert counts(capfd.readouterr().out)["command"]["crashed"] == 1


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("a.csv, line 3: 'cow' is no class", ""),
        ("cannot be read, expected is a table", "none of a.csv is named"),
        ("a.csv is wrong (KeyError('name')), and no more is known", "a message of Python itself (KeyError)"),
        ("a.csv", "it says only that something is wrong"),
    ],
)
def test_what_a_clear_message_is(message, fault):
    assert fault_of_message(message, ["a.csv"]) == fault


def test_spoilt_json_differs_and_the_original_stays():
    value = {"a": [1, {"b": 2}], "c": "text"}
    spoilt = [mutate.spoil_json(random.Random(seed), value)[1] for seed in range(50)]
    assert value == {"a": [1, {"b": 2}], "c": "text"}
    assert sum(one != value for one in spoilt) > 40


@pytest.mark.slow
def test_every_kind_runs_without_a_fault(capfd):
    """No input is silently wrong, unclear or ends the process; some are refused and some are read."""
    code = main(["--seconds", "10", "--seed", "0"])
    printed = capfd.readouterr().out
    found = counts(printed)
    assert found.keys() == {*KINDS, "all"} and all(sum(kind.values()) > 0 for kind in found.values())
    assert code == 0, printed
    assert {outcome: found["all"][outcome] for outcome in FAULTS} == dict.fromkeys(FAULTS, 0), printed
    assert found["all"]["clear"] > 10 and found["all"]["fine"] > 10


def test_one_case_is_made_again(capfd):
    assert main(["--case", "mask-unfit:4", "--seed", "7"]) == 0
    first = re.search("^clear: mask-unfit:4: [^:]+", capfd.readouterr().out, re.MULTILINE)
    main(["--case", "mask-unfit:4", "--seed", "7"])
    assert first and first[0] in capfd.readouterr().out
