"""Griffe extension: docstrings and signatures as the reference shows them.

Examples (`>>>`) become code blocks, and an argument line that names several (`data, cache: ...`)
becomes one per argument. Options that functions share (`**options`) become arguments, with the
defaults of the request that takes them.
"""

import re
from typing import Any

from griffe import Extension, Parameter, ParameterKind

EXAMPLE = re.compile(r"^([ ]*)>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
SHARED = "Unpack[Options]"
SEVERAL = re.compile(r"^([ ]+)(\w+(?:,\s+\w+)+): (.*)$", re.MULTILINE)


class Docstrings(Extension):
    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)

    def on_function(self, *, func: Any, **_: Any) -> None:
        if "options" in func.parameters and str(func.parameters["options"].annotation) == SHARED:
            del func.parameters["options"]
            module = func.modules_collection["attnlab.runner.request"]
            for name, option in module["Options"].attributes.items():
                func.parameters.add(
                    Parameter(
                        name,
                        annotation=option.annotation,
                        kind=ParameterKind.keyword_only,
                        default=module["Request"][name].value,
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
