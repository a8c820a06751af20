"""The gradients of all scale vectors against a backward through every parameter (goal G12: <= 0.72x, equal to 1e-6)."""

from .harness import Figure, report, run_program

row = run_program("saliency_cost")
ratio = row["saliency"] / row["backward"]
figures = [
    Figure(
        "forward and backward, 135 M parameters, 64 tokens",
        ratio,
        "x",
        "<= 0.72x of a backward through all parameters",
        ratio <= 0.72,
        f"{row['saliency']:.3g} s CPU; all parameters {row['backward']:.3g} s, forward alone {row['forward']:.3g} s",
    ),
    Figure(
        "difference of the two gradients, relative, root mean square",
        row["difference"],
        "",
        "<= 1e-6",
        row["difference"] <= 1e-6,
        f"float32; from float64 ours is {row['error']:.3g} away, all parameters' {row['peer_error']:.3g}",
    ),
    Figure(
        "largest difference of one entry, relative to the largest gradient of its vector",
        row["farthest"],
        "",
        "<= 1e-6",
        row["farthest"] <= 1e-6,
        f"float32; from float64 ours is {row['farthest_error']:.3g} away, all parameters' {row['farthest_peer_error']:.3g}",
    ),
]
report("saliency_cost", figures)
