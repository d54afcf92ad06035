"""Which file of a graph runs here: the precision that was asked for, right on this processor, for this provider."""

from collections.abc import Mapping

from dzedge.errors import BundleError
from dzedge.machine import Machine
from dzedge.manifest import Graph, Variant

AUTO = {
    "cpu": ("int8", "fp32", "fp16"),
    "cuda": ("fp16", "fp32"),
    "tensorrt": ("int8", "fp16", "fp32"),
}
"""What "auto" takes, best first. ONNX Runtime runs Q/DQ pairs on CUDA as they stand, which gains nothing there; its
CPU computes in float what is fp16. fp8, nvfp4, w8 and w4 are only ever run when asked for."""
PLAIN = ("fp32", "fp16")
"""For graphs of which there is nothing in the precision asked for: a text encoder is not worth quantizing."""


def choose(graph: str, variants: tuple[Variant, ...], precision: str, machine: Machine) -> Variant:
    """The variant to run. precision: of the manifest, or "auto": what AUTO says for the provider.

    Any other insists where the graph has such variants at all; "fp32" always does. Raises BundleError when nothing
    fits.
    """
    offered = {variant.precision for variant in variants}
    if precision == "auto":
        wanted = AUTO[machine.ep]
    else:
        wanted = (precision,) if precision == "fp32" or precision in offered else PLAIN
    fitting = [variant for variant in variants if fits(variant, machine)]
    for one in wanted:
        for variant in fitting:
            if variant.precision == one:
                return variant
    listed = ", ".join(f"{v.file} ({v.precision}, {v.ep}, {v.isa})" for v in variants)
    raise BundleError(
        f"graph {graph}: no variant with precision {precision!r} for provider {machine.ep}, "
        f"instruction set {machine.isa}; it has: {listed}; set policy.precision, or export for this machine"
    )


def choose_all(graphs: Mapping[str, Graph], precision: str, machine: Machine, source: str) -> dict[str, Variant]:
    """The file of every graph. source: names the bundle. Raises BundleError."""
    check_offered(graphs, precision, source)
    return {name: choose(name, graph.variants, precision, machine) for name, graph in graphs.items()}


def check_offered(graphs: Mapping[str, Graph], precision: str, source: str) -> None:
    """Raises BundleError when not one graph has the precision asked for: what ran would not be what was asked."""
    offered = {variant.precision for graph in graphs.values() for variant in graph.variants}
    if precision != "auto" and precision not in offered:
        raise BundleError(
            f"{source}: no graph has precision {precision!r}; it has {', '.join(sorted(offered))}; "
            'set policy.precision to one of them, or to "auto"'
        )


def fits(variant: Variant, machine: Machine) -> bool:
    """Whether a variant is right on a machine."""
    kinds = variant.isa.split("|")
    if variant.ep != "any" and machine.ep not in variant.ep.split("|"):
        return False
    if machine.ep != "cpu":
        return "any" in kinds or "gpu" in kinds
    # int8 that claims to be right anywhere is not: on plain AVX2 its products saturate.
    if variant.precision == "int8" and "any" in kinds:
        return machine.isa in ("vnni", "neon")
    return "any" in kinds or machine.isa in kinds
