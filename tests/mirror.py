#!/usr/bin/env python3
"""Prints, by module of `src`, what a reader meets: lines, types, functions, documentation, imports.

    tests/mirror.py [PATH]

PATH is a checkout; without it, the one of this script. Test modules are left out, but for the lines. A mirror, no
gate: a wire type may have the name of the domain type it shows, and a short name that everybody knows is a good one.

lines      of all files of the module
types      declared: struct, enum, union, trait, type
twice      of these, whose name is declared elsewhere too
letters    the mean length of the types' names
functions  with a body; then the median, the 90th percentile and the most of their lines
bare       public items without a documentation that says something ("See ..." says nothing)
upwards    imports of modules that stand above this one in LAYERS of tests/it/layers.rs
"""

import collections
import pathlib
import re
import statistics
import sys

OWN = pathlib.Path(__file__).resolve().parent.parent
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(?P<hashes>\#*)".*?"(?P=hashes)|b?"(?:\\.|[^"\\])*"|b?'(?:\\[^\n]*?|[^'\\\n])'""",
    re.DOTALL,
)
TYPE = re.compile(
    r"^[ ]*(?:pub(?:\([^)]*\))?\s+)?(?:unsafe\s+)?(?:struct|enum|union|trait)\s+(\w+)|^(?:pub(?:\([^)]*\))?\s+)?type\s+(\w+)",
    re.MULTILINE,
)
FUNCTION = re.compile(r"^[ ]*(?:pub(?:\([^)]*\))?\s+)?(?:(?:const|async|unsafe|default)\s+)*fn\s+\w+", re.MULTILINE)
PUBLIC = re.compile(
    r"^[ ]*pub\s+(?:(?:const|async|unsafe)\s+)*(?:fn|struct|enum|union|trait|type|const|static)\s+\w+", re.MULTILINE
)


def blank(text):
    """The same text with its letters gone: every line stays where it is."""
    return re.sub(r"[^\n]", " ", text)


def without_comments_and_strings(source):
    return TOKEN.sub(lambda token: blank(token.group()), source)


def end_of_block(code, start):
    """Where the block ends whose first brace is the next one; `None` if a `;` comes before it."""
    depth, brackets = 0, 0
    for at in range(start, len(code)):
        letter = code[at]
        if letter == ";" and depth == 0 and brackets == 0:
            return None
        brackets += (letter in "([") - (letter in ")]")
        depth += (letter == "{") - (letter == "}")
        if letter == "}" and depth == 0:
            return at
    return None


def without_tests(code):
    for test in reversed(list(re.finditer(r"#\[cfg\(test\)\]\s*(?:pub\s+)?mod\s+\w+", code))):
        end = end_of_block(code, test.end())
        if end is not None:
            code = code[: test.start()] + blank(code[test.start() : end + 1]) + code[end + 1 :]
    return code


def says_something(lines, item):
    """Whether the lines above an item document it."""
    doc, at = [], item - 1
    while at >= 0 and (line := lines[at].strip()) and (line.startswith(("///", "#[", "//")) or line.endswith(")]")):
        # An attribute of several lines ends here: up to where it begins.
        while line.endswith(")]") and not lines[at].strip().startswith("#[") and at > 0:
            at -= 1
        doc += [line.removeprefix("///").strip()] if line.startswith("///") else []
        at -= 1
    # From below.
    text = " ".join(reversed(doc))
    return bool(text) and not re.fullmatch(r"(See [^.]*(\.|$)\s*)+", text)


def members(tree):
    """The first name of every path of a `use` tree below `crate::`."""
    if not tree.startswith("{"):
        return {re.match(r"\w*", tree).group()}
    depth, start, found = 0, 1, set()
    for at, letter in enumerate(tree):
        if (letter == "," and depth == 1) or (letter == "}" and depth == 1):
            found.add(re.match(r"\w*", tree[start:at].strip()).group())
            start = at + 1
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            break
    return found


def imports(code):
    found = set()
    for path in re.finditer(r"\bcrate::\s*", code):
        found |= members(code[path.end() :])
    return found - {""}


def circles(graph):
    """The sets of modules that reach each other."""
    reached = {}
    for module in graph:
        seen, todo = set(), [module]
        while todo:
            for used in graph.get(todo.pop(), ()):
                if used not in seen:
                    seen.add(used)
                    todo.append(used)
        reached[module] = seen
    sets = {frozenset(b for b in graph if b in reached[a] and a in reached[b]) for a in graph if a in reached[a]}
    return sorted(sorted(one) for one in sets if len(one) > 1)


def layers(root):
    """The modules from the top, as the test of the layers declares them."""
    for place in (root, OWN):
        file = place / "tests/it/layers.rs"
        if file.is_file():
            declared = re.search(r"const LAYERS.*?^\];", file.read_text(), re.DOTALL | re.MULTILINE).group()
            return re.findall(r'"(\w+)"', declared)
    return []


class Module:
    def __init__(self):
        self.lines, self.types, self.functions, self.public, self.bare = 0, [], [], 0, 0
        self.imports = set()

    def read(self, path):
        source = path.read_text()
        self.lines += source.count("\n")
        if path.suffix != ".rs" or path.stem == "tests":
            return
        code = without_tests(without_comments_and_strings(source))
        lines = source.splitlines()
        line_of = lambda at: code.count("\n", 0, at)
        self.types += [a or b for a, b in TYPE.findall(code)]
        for function in FUNCTION.finditer(code):
            end = end_of_block(code, function.end())
            if end is not None:
                self.functions.append(line_of(end) - line_of(function.start()) + 1)
        for item in PUBLIC.finditer(code):
            self.public += 1
            self.bare += not says_something(lines, line_of(item.start()))
        self.imports |= imports(code)


def measured(source):
    modules = collections.defaultdict(Module)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            modules[path.relative_to(source).parts[0].removesuffix(path.suffix)].read(path)
    return modules


def main():
    root = pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else OWN
    modules = measured(root / "src")
    declared = collections.Counter(name for module in modules.values() for name in module.types)
    place = {name: number for number, name in enumerate(layers(root))}
    # What `crate::Failure` and the like name is at the root: no module.
    graph = {name: {used for used in module.imports if used in modules and used != name} for name, module in modules.items()}
    upwards = {
        name: sorted(used for used in graph[name] if name in place and used in place and place[used] < place[name])
        for name in modules
    }

    form = "{:<12} {:>6} {:>6} {:>6} {:>8} {:>10} {:>7} {:>4} {:>4} {:>12}  {}"
    print(form.format("module", "lines", "types", "twice", "letters", "functions", "median", "p90", "max", "bare/public", "upwards"))

    def row(name, those, up):
        types = [name for module in those for name in module.types]
        functions = sorted(lines for module in those for lines in module.functions)
        print(
            form.format(
                name,
                sum(module.lines for module in those),
                len(types),
                sum(declared[name] > 1 for name in types),
                f"{statistics.mean(map(len, types)):.1f}" if types else "-",
                len(functions),
                f"{statistics.median(functions):g}" if functions else "-",
                functions[int(0.9 * (len(functions) - 1))] if functions else "-",
                functions[-1] if functions else "-",
                f"{sum(module.bare for module in those)}/{sum(module.public for module in those)}",
                up,
            )
        )

    for name in sorted(modules, key=lambda name: (place.get(name, len(place)), name)):
        row(name, [modules[name]], ", ".join(upwards[name]))
    row("all", modules.values(), sum(map(len, upwards.values())))

    unplaced = sorted(set(modules) - set(place) - {"lib"})
    if unplaced:
        print(f"\nin no layer, so that upwards does not see them: {', '.join(unplaced)}")
    twice = sorted(name for name, count in declared.items() if count > 1)
    print(f"\ndeclared more than once: {len(twice)} names of {len(declared)}: {', '.join(twice)}")
    found = circles(graph)
    print(f"circles: {len(found)}" + "".join(f"\n  {', '.join(circle)}" for circle in found))


main()
