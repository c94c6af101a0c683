"""Reference of the command line, from the help texts of the commands themselves."""

from typing import Any

INTRO = """# Command line

`attnlab COMMAND --help` shows the same. Every command is also a function of the
[Python API](api.md). Wherever settings are accepted, `section.key=value` changes one
([list of settings](settings.md)).

| exit code | meaning |
| --: | -- |
| 0 | done |
| 1 | done, and a run failed or diverged, a property is violated, a measurement failed; or a plan \
that cannot be run |
| 2 | invalid input, in one line; nothing was run |
| 128 + n | ended by signal n: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP; what was finished \
is kept and reported, and the same command continues |

A second signal ends the command at once. A reader that closes the pipe (`| head`) ends nothing.
The name of a study stands for its folder in `results/`, or else in `published/`.
"""


def page() -> str:
    """Return the page: a section per command, with its arguments and options."""
    import typer.main

    from attnlab.cli import app

    group: Any = typer.main.get_command(app)
    parts = [INTRO]
    for name in group.list_commands(None):
        command = group.commands[name]
        parts.append(f"## attnlab {name}\n\n{_text(command.help)}\n")
        parts.append(f"```\nattnlab {name} {_usage(command)}\n```\n")
        arguments = [_row(p) for p in command.params if p.param_type_name == "argument"]
        options = [_row(p) for p in command.params if p.param_type_name == "option"]
        for title, rows in (("argument", arguments), ("option", options)):
            if rows:
                head = f"| {title} | meaning | default |\n|---|---|---|"
                parts.append("\n".join([head, *rows]) + "\n")
    return "\n".join(parts)


def _usage(command: Any) -> str:
    words = [
        (word if p.required else f"[{word}]") + ("..." if p.nargs == -1 or p.multiple else "")
        for p in command.params
        if p.param_type_name == "argument"
        for word in [_metavar(p)]
    ]
    return " ".join([*words, "[OPTIONS]"])


def _metavar(parameter: Any) -> str:
    return (parameter.metavar or parameter.name).upper()


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = _metavar(parameter)
    else:
        name = ", ".join(parameter.opts)
        if not parameter.is_flag:
            name += f" {parameter.metavar or 'TEXT'}"
    return f"| `{name}` | {_cell(parameter.help)} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return _cell(shown)
    value = parameter.default
    if parameter.required:
        return "required"
    absent = value is None or value is False or value == () or "UNSET" in repr(value).upper()
    return "" if absent else f"`{value}`"


def _text(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
