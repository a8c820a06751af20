"""The tracer's sums over linear maps: alone (goal G5), and in the pass of AdamW that moves the maps (goal G6)."""

from .harness import Figure, report, run_program

row = run_program("tracer_cost")
alone, with_adamw = row["sums_to_eager"], row["fused_to_adamw"]
report(
    "tracer_cost",
    [
        Figure("parameters", row["parameters"] / 1e6, "million"),
        Figure(
            "six sums of w, w + d and g by column / three of w and g by eager operators", alone, "x", "<= 0.25", alone <= 0.25,
            f"{1e3 * row['sums']:.3g} ms CPU; eager {1e3 * row['eager']:.3g} ms",
        ),
        Figure(
            "reading the three tensors (sum) / the sums", 1 / row["sums_to_read"], "x", ">= 0.7", row["sums_to_read"] <= 1 / 0.7,
            f"{1e3 * row['read']:.3g} ms CPU",
        ),
        Figure(
            "six sums of three tensors by column / one norm of w and of g (foreach)", row["sums_to_foreach"], "x",
            note=f"{1e3 * row['foreach']:.3g} ms CPU; the norms read two thirds as much",
        ),
        Figure(
            "AdamW with seven sums on the way / without", with_adamw, "x", "<= 1.20", with_adamw <= 1.20,
            f"{1e3 * row['fused']:.3g} ms CPU; without {1e3 * row['adamw']:.3g} ms",
        ),
        Figure(
            "AdamW with sums / AdamW, then three sums by eager operators", row["fused_to_eager"], "x", "<= 0.35",
            row["fused_to_eager"] <= 0.35,
        ),
        Figure("our AdamW / torch's fused one", row["adamw_to_torch"], "x", note=f"{1e3 * row['torch_adamw']:.3g} ms CPU"),
    ],
)  # fmt: skip
