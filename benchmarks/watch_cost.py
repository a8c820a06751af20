"""What watching costs one norm of 576 channels: nobody there, taps, a capture (goal G4: taps <= 1.03x)."""

from .harness import Figure, report, run_program

rows = run_program("watch_cost")
figures = []
for row in rows:
    name = f"{row['variant']}, {row['tokens']} tokens"
    # The goal is for the same bytes: `normalized` is a third stream beside x and y.
    counts = row["tokens"] == 65536 and row["variant"] in ("empty list", "tap of the input", "taps but normalized")
    figures.append(
        Figure(
            name,
            row["ratio"],
            "x",
            "<= 1.03x of no list" if counts else "",
            row["ratio"] <= 1.03 if counts else None,
            f"{1e6 * row['seconds']:.3g} us CPU",
        )
    )
report("watch_cost", figures)
