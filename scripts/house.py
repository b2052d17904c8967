"""The size of the house against its aims, as one table: python scripts/house.py (CI runs it)."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "jepakit"


def main() -> None:
    trees = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
    lines = {path: len(path.read_text().splitlines()) for path in trees}
    folders = [path for path in SOURCE.rglob("*") if path.is_dir() and any(path.glob("*.py"))]
    functions = {
        f"{path.relative_to(SOURCE)}: {node.name}": node.end_lineno - node.lineno + 1
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    }
    files = {folder: len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) for folder in folders}
    rows = [
        ("lines of the package", sum(lines.values()), 12_500),
        ("lines of data/", sum(n for path, n in lines.items() if path.is_relative_to(SOURCE / "data")), 4_000),
        ("files above 300 lines", sum(n > 300 for n in lines.values()), 0),
        ("functions above 40 lines", sum(n > 40 for n in functions.values()), 0),
        ("folders of more than 16 files", sum(n > 16 for n in files.values()), 0),
    ]
    for what, value, aim in rows:
        print(f"{what:32}{value:8,}   aim {aim:,}{'' if value <= aim else '   missed'}")
    for path, n in lines.items():
        if n > 300:
            print(f"  {path.relative_to(SOURCE)}: {n} lines")
    for name, n in functions.items():
        if n > 40:
            print(f"  {name}: {n} lines")


if __name__ == "__main__":
    main()
