"""YAML as a person means it: every surprise of YAML 1.1 is read as it looks, or refused with its file and line."""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from toco_lab.fields import shown
from toco_lab.files import read_text

MOST_VALUES = 100_000  # of one file, aliases written out
_DECIMAL = re.compile(r"[-+]?(0|[1-9][\d_]*)$|[-+]?0x[\da-fA-F_]+$|[-+]?0b[01_]+$")


class _Refused(yaml.MarkedYAMLError):
    """What YAML would read, and not as it looks."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader: `1e-4` is a number (to YAML 1.1 it is text), a date is text, and no key comes twice."""

    yaml_implicit_resolvers: ClassVar[dict] = {
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":timestamp", ":merge"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (mark, _) in zip(keys, node.value, strict=True):
            if key == "<<":
                raise _Refused(problem="`<<` is not read: write the keys out", problem_mark=mark.start_mark)
            if keys.count(key) > 1:
                raise _Refused(problem=f"{key!r} comes twice", problem_mark=mark.start_mark)
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node: Any) -> int | float:
        """A number without base 8 (`010` is 8) and base 60 (`1:30` is 90), which nobody means."""
        kind = self.construct_yaml_int if node.tag.endswith("int") else self.construct_yaml_float
        text = str(node.value)
        if ":" in text or (kind == self.construct_yaml_int and not _DECIMAL.match(text)):
            problem = f"{shown(text)} is a number of base {60 if ':' in text else 8} in YAML; write it in decimal, or "
            raise _Refused(problem=f"{problem}as text in quotes", problem_mark=node.start_mark)
        try:
            return kind(node)
        except ValueError as error:
            raise _Refused(
                problem=f"{shown(text[:50])} is no number that can be read", problem_mark=node.start_mark
            ) from error


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_decimal)


def read_yaml(path: Path | str) -> Any:
    """The one document of a small YAML file that a person wrote.

    Raises:
        ValueError: For anything else; one line with the file, the line and what is wrong there.
    """
    text = read_text(path)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (values := _size(node, {})) > MOST_VALUES:
            raise ValueError(f"{path}: aliases (*name) make {shown(values)} values; {MOST_VALUES:,} are read at most")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{where}: {_problem(error)}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read: its values are nested too deep") from error


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or str(error)
    if isinstance(error, _Refused):
        return problem
    if "\\t" in problem:
        return "a tab where YAML wants spaces: indent by spaces"
    if "another document" in problem:
        return "a second document begins with `---`; one file holds one"
    return f"cannot be read as YAML: {problem}"


def _size(node: Any, sizes: dict[int, int]) -> int:
    """Number of values below a node, with every alias written out."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:  # begun above, and not ended
            raise _Refused(problem="an alias (*name) stands inside of what it names", problem_mark=node.start_mark)
        return sizes[id(node)]
    sizes[id(node)] = 0
    children: list[Any] = [] if isinstance(node, yaml.ScalarNode) else list(node.value)
    if isinstance(node, yaml.MappingNode):
        children = [one for pair in node.value for one in pair]
    sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]
