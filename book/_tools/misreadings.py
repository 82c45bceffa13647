"""Write `book/misreadings.md`: every misreading box of the book in one list, made from the boxes themselves."""

from __future__ import annotations

import re
import sys

from notebooks import ROOT, notebooks, prose, read

PAGE = ROOT / "book" / "misreadings.md"
BOX = re.compile(
    r"^:{3,}\{admonition\} *Misreading (?P<codes>S[\d.]+(?:, S[\d.]+)*): *(?P<title>.+)\n"
    r"(?:.*\n)*?\*\*Often written\.\*\* *(?P<often>(?:.+\n)+)"
    r"(?:.*\n)*?\*\*True\.\*\* *(?P<true>(?:.+\n)+)",
    flags=re.MULTILINE,
)
HEAD = """# Misreadings

What is often written about these things, and what is true instead. Each entry stands in its chapter with something that
shows it, and has a test of the same code that fails for the wrong version. The letter and number are only a name.
"""


def page() -> str:
    """The whole page, chapter by chapter in the order of the book."""
    parts = [HEAD]
    for name in notebooks():
        text = prose(read(name))
        found = list(BOX.finditer(text + "\n"))
        if not found:
            continue
        link = name.removesuffix(".ipynb")
        title = text.partition("\n")[0].removeprefix("# ")
        parts.append(f"\n## {title}\n\nShown in {{doc}}`/{link}`.\n")
        for box in sorted(
            found,
            key=lambda b: [int(n) for n in re.findall(r"\d+", b["codes"])],
        ):
            often, true = (
                " ".join(box[part].split()) for part in ("often", "true")
            )
            title = f"**{box['codes']}: {box['title'].strip()}**"
            parts.append(
                f"\n{title}\n\n*Often written.* {often}\n\n*True.* {true}\n"
            )
    return "".join(parts)


def main() -> int:
    PAGE.write_text(page(), "utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
