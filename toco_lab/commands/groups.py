"""Commands that hold other commands."""

from typing import Annotated, Any, Union

import tyro


def _commands(*functions: Any) -> Any:
    """A type that makes tyro offer these functions as commands, and call the chosen one."""
    return Union[  # noqa: UP007 (made at runtime)
        tuple(
            Annotated[Any, tyro.conf.subcommand(function.__name__.strip("_"), constructor=function, prefix_name=False)]
            for function in functions
        )
    ]
