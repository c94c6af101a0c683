"""Griffe extension: docstrings and signatures as the reference shows them.

Examples (`>>>`) become code blocks, and an argument line that names several (`data, cache: ...`)
becomes one per argument. A function that is `taking` a request has the fields of it as arguments.
"""

import re
from typing import Any

from griffe import Extension, Parameter, ParameterKind

EXAMPLE = re.compile(r"^([ ]*)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
TAKING = re.compile(r"taking\((\w+)\)")
SEVERAL = re.compile(r"^([ ]+)(\w+(?:,\s+\w+)+): (.*)$", re.MULTILINE)


class Docstrings(Extension):
    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)

    def on_function(self, *, func: Any, **_: Any) -> None:
        taken = [TAKING.fullmatch(str(decorator.value)) for decorator in func.decorators]
        for kind in (func.parent[match[1]] for match in taken if match):
            del func.parameters["request"]
            shared = func.modules_collection["attnlab.runner.request"]["Request"]
            for each in {**shared.attributes, **kind.attributes}.values():
                if each.annotation is None:
                    continue
                is_first = each.name == "study"
                func.parameters.add(
                    Parameter(
                        each.name,
                        annotation=each.annotation,
                        kind=ParameterKind.positional_or_keyword
                        if is_first
                        else ParameterKind.keyword_only,
                        default=None if is_first else each.value,
                    )
                )


def shown(text: str) -> str:
    """Return a docstring with its examples fenced and its shared argument lines split.

    >>> shown("Add.\\n\\n>>> 1 + 1\\n2")
    'Add.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    text = SEVERAL.sub(
        lambda m: "\n".join(f"{m[1]}{name}: {m[3]}" for name in re.split(r",\s+", m[2])), text
    )
    return EXAMPLE.sub(lambda m: f"{m[1]}```pycon\n{m[0]}\n{m[1]}```", text)
