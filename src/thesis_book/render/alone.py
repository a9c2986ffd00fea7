"""The code of one figure, alone: of its chapter the statements that it needs."""

import ast

from nbformat import NotebookNode

from thesis_lib.common.errors import require

# What serves the page and no figure; methods that change what they are called on.
PAGE = {"claims", "parameters", "print", "records", "table"}
CHANGING = {
    "add", "append", "clear", "discard", "extend", "insert", "pop", "popitem",
    "remove", "reverse", "setdefault", "sort", "update",
}  # fmt: skip
# Of a node, the fields that are evaluated before its others, and of a branching
# one those that may never be.
FIRST = ("generators", "iter", "defaults", "kw_defaults", "value")
BRANCHING = ast.If | ast.For | ast.While | ast.Try
BRANCHES = {"body", "orelse", "handlers", "finalbody"}
HEAD = """\
# Draws {name} of chapter {number}, with the parameters of its run.
# It runs with .venv/bin/python of a checkout of the thesis, after `make setup`.
"""


def _root(node: ast.AST) -> set[str]:
    """The name that a chain such as `name.rows[0].copy().sort` begins with, if any."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


class _Use(ast.NodeVisitor):
    """The names that a statement reads as they were, surely sets, and may change.

    It may change what it sets an item or an attribute of, or calls a method of CHANGING
    on; what it calls or hands over where it takes no value, unless it serves the page;
    and what a loop takes such a thing from. Calls for a value change nothing else, and
    no other name of the same object is followed.
    """

    def __init__(self, statement: ast.stmt) -> None:
        self.reads, self.sets, self.changes = set[str](), set[str](), set[str]()
        self.silent = any(
            isinstance(each, ast.Expr) and _root(each.value) & PAGE
            for each in ast.walk(statement)
        )
        self.visit(statement)

    def generic_visit(self, node: ast.AST) -> None:
        before, branching = set(self.sets), isinstance(node, BRANCHING)
        first = [name for name in FIRST if name in node._fields]
        for name in dict.fromkeys([*first, *node._fields]):
            part = getattr(node, name, None)
            for each in part if isinstance(part, list) else [part]:
                if isinstance(each, ast.AST):
                    self.visit(each)
            loop = node if isinstance(node, ast.For) and name == "body" else None
            if loop and _names(loop.target) & self.changes:
                self.changes |= _names(loop.iter)
            if branching and name in BRANCHES:
                self.changes |= self.sets - before
                self.sets = set(before)

    def _scope(self, node: ast.AST) -> None:
        before = set(self.sets)
        self.generic_visit(node)
        self.sets = before | {getattr(node, "name", "")}

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _scope  # noqa: N815
    visit_Lambda = visit_FunctionDef = visit_ClassDef = _scope  # noqa: N815

    def visit_arg(self, node: ast.arg) -> None:
        self.sets.add(node.arg)

    def visit_alias(self, node: ast.alias) -> None:
        self.sets.add(_bound(node))

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.reads |= {node.id} - self.sets
        else:
            self.sets.add(node.id)

    def visit_Attribute(self, node: ast.Attribute | ast.Subscript) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.changes |= _root(node)
        self.generic_visit(node)

    visit_Subscript = visit_Attribute  # noqa: N815

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.changes |= _root(node.target)
        self.reads |= _names(node.target) - self.sets
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
            self.changes |= _root(node)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not self.silent:
            given = [*node.value.args, *(each.value for each in node.value.keywords)]
            held = [each for each in given if not isinstance(each, ast.Call)]
            self.changes.update(*map(_root, [node.value, *held]))
        self.visit(node.value)


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _lines(source: str, statement: ast.stmt) -> tuple[str, str]:
    """A statement as it is written, below its comment, and the blank line above."""
    lines, first = source.split("\n"), statement.lineno - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    gap = "\n" if first and not lines[first - 1] else ""
    return "\n".join(lines[first : statement.end_lineno]) + "\n", gap


def _of_import(text: str, statement: ast.stmt, wanted: set[str]) -> str:
    """The text of an import of what is wanted alone, that of another statement."""
    if not isinstance(statement, ast.Import | ast.ImportFrom):
        return text
    names = [each for each in statement.names if _bound(each) in wanted]
    if len(names) == len(statement.names):
        return text
    statement.names = names
    return f"{ast.unparse(statement)}\n"


def _figure(cell: NotebookNode) -> str:
    """The name of the figure that a cell shows, empty for others."""
    return cell.metadata.get("mystnb", {}).get("figure", {}).get("name", "")


def alone(cells: list[NotebookNode], number: int) -> str:
    """A script that draws the figure of the last of these cells of a chapter.

    They are its code cells up to there, in their order. The script saves the figure as
    NAME.svg. Raises InvalidInput where the last cell ends without a value.
    """
    name, wanted, kept = _figure(cells[-1]), set[str](), []
    for cell in reversed(cells):
        statements, text = ast.parse(cell.source).body, ""
        last = statements[-1] if statements else None
        for statement in reversed(statements):
            use, (written, gap) = _Use(statement), _lines(cell.source, statement)
            if statement is last and _figure(cell):  # its value is the figure
                written = f"figure = {written}" if cell is cells[-1] else ""
            elif wanted & (use.sets | use.changes):
                written = _of_import(written, statement, wanted)
            else:
                written = ""
            text = (gap if (written or text)[:1] != "\n" else "") + written + text
            wanted = wanted - use.sets | use.reads if written else wanted
        require(
            cell is not cells[-1] or isinstance(last, ast.Expr),
            f"the cell of {name} ends without a value, expected the figure: end it "
            "with the call that draws it, such as `figures.name(...)`",
        )
        kept.insert(0, text.strip("\n"))
    body = "\n\n".join(filter(None, kept))
    head = HEAD.format(name=name, number=number)
    return f'{head}\n{body}\nfigure.savefig("{name}.svg")\n'


def scripts(notebook: NotebookNode, number: int) -> dict[str, str]:
    """Of every figure of a chapter its script, by the name of the figure.

    Raises InvalidInput as `alone`.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    places = {_figure(cell): place for place, cell in enumerate(cells, 1)}
    return {
        name: alone(cells[:place], number) for name, place in places.items() if name
    }
