"""How many rules each chain of our table must have, counted in the text that is loaded."""

NO_RULES = ("type ", "#", "policy ")


def rules_by_chain(text: str) -> dict[str, int]:
    """Return the number of rules of each chain in the text of a ruleset."""
    counts: dict[str, int] = {}
    chain = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("chain ") and line.endswith("{"):
            chain = line.split()[1]
            counts[chain] = 0
        elif line == "}":
            chain = ""
        elif chain and line and not line.startswith(NO_RULES):
            counts[chain] += 1
    return counts
