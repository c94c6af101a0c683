"""Reference of all settings, read from the source: type, default and comment of every field.

The classes are read as syntax and not imported, so that the page can be made without torch. How a
mechanism did is read from the reports of the published studies.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src/attnlab"
PUBLISHED = Path(__file__).parents[2] / "published"
ROOTS = {"Config", "Choice"}  # what every class of settings descends from
PLAIN = {"Study", "Sampling"}  # documented beside them
GROUPS = {  # package -> heading and what precedes a field on the command line
    "training": ("Training", "Every run has one `RunConfig`; `train.steps=100` changes a field."),
    "model": ("Model", "`model.d_model=256` changes a field in every variant of a study."),
    "mechanisms": (
        "Mechanisms",
        "`model.mechanisms.0.window=64` changes a field of the first mechanism of the layers, "
        "`model.mechanisms.layers.3.window=64` that of layer 3.",
    ),
    "modules": ("Parts of mechanisms", ""),
    "data": ("Data and tokenizers", "`data=text data.paths=FILE` replaces the data of a study."),
    "study": ("Studies", "These are written in a study's Python file."),
    "hypotheses": ("Hypotheses", "What a study lists for its report to judge."),
    "inference": ("Generation", ""),
}
INTRO = """# Settings

Settings are frozen, keyword-only dataclasses. In Python they are constructed, in `config.json` they
are nested objects, and on the command line `section.key=value` changes one: an unknown key is an
error that suggests the right one. A default of `None` or `False` means that something is absent.
The *kind* names a class in `config.json` and on the command line. `attnlab list` prints the same
from the installed package.
"""


@dataclass
class Field:
    name: str
    type: str
    default: str | None  # None: required
    comment: str


@dataclass
class Class:
    name: str
    module: str
    doc: str
    bases: list[str]
    kind: str
    path: Path
    node: ast.ClassDef
    rest: str = ""  # of a mechanism: equations, cost and source, as its file has them
    fields: list[Field] = field(default_factory=list[Field])


def page() -> str:
    """Return the page: a section per package, a table per class."""
    known = classes()
    parts = [INTRO]
    for package, (heading, lead) in GROUPS.items():
        shown = [one for one in known.values() if _group(one) == package and documented(one, known)]
        if shown:
            parts.append(f"## {heading}\n\n{lead}\n")
            parts.extend(_section(one, known) for one in sorted(shown, key=_place))
    return "\n".join(parts)


@cache
def classes() -> dict[str, Class]:
    """Return every class of settings by its name, with its own fields."""
    found = [one for path in sorted(SOURCE.rglob("*.py")) for one in _classes_of(path)]
    known = {one.name: one for one in found if one.name in PLAIN}
    settings, before = ROOTS | PLAIN, set[str]()
    while before != settings:
        before = settings
        known |= {one.name: one for one in found if settings & set(one.bases)}
        settings = ROOTS | set(known)
    for one in known.values():
        text, comments = _comments(one.path)
        one.fields = list(_fields_of(one.node, comments, text))
    return {name: one for name, one in known.items() if name not in ROOTS}


def documented(one: Class, known: dict[str, Class]) -> bool:
    """True if the class is shown: it is neither a family's root nor a shared base."""
    return not one.name.startswith("_") and not any(
        one.name in other.bases for other in known.values()
    )


def all_fields(one: Class, known: dict[str, Class]) -> list[Field]:
    """Return the fields of a class and of its bases, those that it sets itself first."""
    found = {item.name: item for item in one.fields}
    for base in one.bases:
        if base in known:
            for item in all_fields(known[base], known):
                found.setdefault(item.name, item)
    return list(found.values())


def _section(one: Class, known: dict[str, Class]) -> str:
    kind = f", kind `{one.kind}`" if _is_choice(one, known) else ""
    lines = [f"### {one.name}\n", f"`{one.module}`{kind}. {_prose(one.doc)}".rstrip() + "\n"]
    if one.rest:
        lines.append(one.rest + "\n")
        lines.extend(how_it_did(one.kind))
    fields = all_fields(one, known)
    if fields:
        lines.append("| setting | type | default | meaning |\n|---|---|---|---|")
        lines.extend(_row(item) for item in fields)
    else:
        lines.append("No settings.")
    return "\n".join(lines) + "\n"


def how_it_did(kind: str) -> list[str]:
    """Return a table of the published studies that have the kind in all layers of a variant."""
    rows = [row for path in sorted(PUBLISHED.glob("*/report.md")) for row in _best(path, kind)]
    if not rows:
        return ["How it did: no published study has it in all layers.\n"]
    head = "| study | its best variant | place | result | difference to the baseline | |"
    said = "How it did in the published studies that have variants with it in all layers:"
    return [f"{said}\n", head, "|---|---|---|---|---|---|", *rows, ""]


def _best(report: Path, kind: str) -> Iterator[str]:
    """Yield the row of the kind's best variant, if the report has one table of variants."""
    lines = report.read_text(encoding="utf-8").splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("| # |")]
    if len(heads) != 1:
        return
    names = _cells(lines[heads[0]])
    table = [_cells(line) for line in takewhile(lambda x: x.startswith("|"), lines[heads[0] + 2 :])]
    rows = [dict(zip(names, cells, strict=True)) for cells in table]
    measure = names[names.index("variant") + 1]
    difference = next((name for name in names if name.startswith("Δ ")), None)
    for row in rows:
        if row.get("mechanism") == kind and row["#"].isdigit():
            to_baseline = row[difference] if difference else "–"
            place = f"{row['#']} of {sum(other['#'].isdigit() for other in rows)}"
            cells = (
                row["variant"],
                place,
                f"{row[measure]} {measure}",
                to_baseline,
                row.get("vs baseline", "–"),
            )
            yield f"| `{report.parent.name}` | {' | '.join(cells)} |"
            return


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _row(item: Field) -> str:
    default = "required" if item.default is None else f"`{_line(item.default)}`"
    kind = re.sub(
        r"Literal\[([^]]*)\]",
        lambda found: found[1].replace(", ", " | "),
        aliases().get(item.type, item.type),
    )
    comment = _line(item.comment).replace("|", "\\|")
    return f"| `{item.name}` | `{_line(kind)}` | {default} | {comment} |"


@cache
def aliases() -> dict[str, str]:
    """Return what a type alias stands for, by the name that fields give it: `attention.Kernel`."""
    found = dict[str, str]()
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
                continue
            if isinstance(node.value, ast.Subscript):
                value = ast.unparse(node.value)
                if value.startswith("Literal["):
                    found |= dict.fromkeys(
                        (node.targets[0].id, f"{path.stem}.{node.targets[0].id}"), value
                    )
    return found


def _classes_of(path: Path) -> Iterator[Class]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = ".".join(("attnlab", *path.relative_to(SOURCE).with_suffix("").parts))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
            doc, kind = ast.get_docstring(node) or "", _kind_of(node)
            made = Class(node.name, module, doc, bases, kind, path, node)
            if not made.doc:
                made.doc, made.rest = _opening(tree, path, node.name)
            yield made


def _fields_of(
    node: ast.ClassDef, comments: dict[int, tuple[str, bool]], text: str
) -> Iterator[Field]:
    for item, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        kind = ast.unparse(item.annotation)
        if kind.startswith("ClassVar"):
            continue
        said = [
            comments[line][0]
            for line in range(item.lineno, item.end_lineno + 1)
            if line in comments
        ]
        line, below = (item.end_lineno or item.lineno) + 1, list[str]()
        while line in comments and comments[line][1]:
            below.append(comments[line][0].removeprefix("^").strip())
            line += 1
        said += [" ".join(below)] if below else []
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            said.append(str(after.value.value))
        value = None if item.value is None else _default(item.value, text)
        yield Field(item.target.id, kind.strip("'\""), value, "; ".join(said))


def _default(value: ast.expr, text: str) -> str:
    """Return the default as it is written; of `field(default_factory=...)`, what it makes."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        made = next((k.value for k in value.keywords if k.arg == "default_factory"), None)
        if isinstance(made, ast.Lambda):
            return ast.unparse(made.body)
        return "{}" if made is None or "dict" in ast.unparse(made) else f"{ast.unparse(made)}()"
    return ast.get_source_segment(text, value) or ast.unparse(value)


@cache
def _comments(path: Path) -> tuple[str, dict[int, tuple[str, bool]]]:
    """Return a file's text, the comment of each line, and whether it has the line to itself."""
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return text, {
        token.start[0]: (token.string.lstrip("# ").strip(), token.line.lstrip().startswith("#"))
        for token in tokens
        if token.type == tokenize.COMMENT and "noqa" not in token.string
    }


def _opening(tree: ast.Module, path: Path, name: str) -> tuple[str, str]:
    """Return the first paragraph of a file that one kind has to itself; of a mechanism, the rest.

    The rest is Markdown: equations are indented, which makes them code.
    """
    if path.stem != _snake_case(name):
        return "", ""
    first, _, rest = (ast.get_docstring(tree) or "").partition("\n\n")
    return first, rest if path.parent.name == "mechanisms" else ""


def _group(one: Class) -> str:
    return "hypotheses" if ".hypotheses" in one.module else one.module.split(".")[1]


def _place(one: Class) -> tuple[int, str]:
    first = ("RunConfig", "Study", "ModelConfig", "TrainConfig", "EvalConfig", "Tuning")
    return (first.index(one.name) if one.name in first else len(first), one.name.lower())


def _kind_of(node: ast.ClassDef) -> str:
    """Return the kind of a class: its name in snake case, or what its `name()` returns."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "name":
            value = item.body[-1].value if isinstance(item.body[-1], ast.Return) else None
            if isinstance(value, ast.Constant):
                return str(value.value)
    return _snake_case(node.name)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _is_choice(one: Class, known: dict[str, Class]) -> bool:
    return any(
        base == "Choice" or (base in known and _is_choice(known[base], known)) for base in one.bases
    )


def _prose(doc: str) -> str:
    return " ".join(doc.split("\n\n")[0].split())


def _line(text: str) -> str:
    return " ".join(text.split())
