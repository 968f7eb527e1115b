"""Write the table of transformers' families into docs/models.md, or --check whether it is there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.families.table import FAMILIES, SKIPPED

PAGE = Path(__file__).with_name("models.md")
START, END = "<!-- written by docs/make_families.py -->\n", "<!-- end -->\n"


def table() -> str:
    """Return the families that are tested, and the types that are not, with the reasons."""
    inputs = {name: "data" if family.shape else "embedding" for name, family in FAMILIES.items()}
    rows = [
        f"| {name} | `{family.architecture}` | {inputs[name]} |"
        for name, family in FAMILIES.items()
    ]
    reasons = [f"- {reason}: {', '.join(names)}." for reason, names in SKIPPED.items()]
    return "\n".join(
        [
            f"{len(FAMILIES)} families are tested:\n",
            "| `model_type` | class | with respect to |\n| --- | --- | --- |",
            *rows,
            "\nNot tested, by reason:\n",
            *reasons,
            "",
        ]
    )


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` return 1 where it is not up to date."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    wanted = before + START + table() + END + after
    if "--check" in arguments:
        return int(text != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
