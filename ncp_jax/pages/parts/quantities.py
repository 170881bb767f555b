"""What the metrics of `results.json` are called, what they mean, how they print."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Z95 = 1.96  # standard errors in half a 95 % interval


class Meaning(NamedTuple):
    """How one metric is presented."""

    section: str
    label: str
    text: str


class Quantity(NamedTuple):
    """One metric, ready to print."""

    name: str  # its key in results.json, without the group
    group: int | None  # None: of the whole model
    meaning: Meaning
    value: str
    interval: str  # "± half a 95 % interval"
    unit: str
    n: str


LIKELIHOOD, STAGE_2, SAMPLES, OTHER = "Likelihood", "Stage 2", "Samples", "Other"
MEANINGS = {
    "gain_nats": Meaning(
        LIKELIHOOD,
        "Gain of the NCP prior",
        "nll_base - nll_ncp on the same examples; higher is better",
    ),
    "gain_snis_nats": Meaning(
        LIKELIHOOD,
        "Gain of its SIR sampler",
        "nll_base - nll_snis on the same examples; higher is better",
    ),
    "nll_base": Meaning(
        LIKELIHOOD,
        "NLL, base prior",
        "importance-weighted bound on -log p(x); lower is better",
    ),
    "nll_ncp": Meaning(
        LIKELIHOOD,
        "NLL, NCP prior",
        "the same bound under r(z) p(z) / Z; lower is better",
    ),
    "nll_snis": Meaning(
        LIKELIHOOD,
        "NLL, SNIS bound",
        "bound for group-by-group SIR at a finite number of proposals; lower is better",
    ),
    "elbo_base": Meaning(
        LIKELIHOOD,
        "ELBO, base prior",
        "lower bound on log p(x), the mean over posterior draws; higher is better",
    ),
    "log_z": Meaning(
        LIKELIHOOD, "log Z", "normaliser of r(z) p(z); 0 for an ideal classifier"
    ),
    "log_z_draws_missing": Meaning(
        LIKELIHOOD,
        "Draws missing",
        "so many more bring log Z's error to evaluate.max_log_z_stderr; until then the "
        "NCP prior's NLL and gain are not given",
    ),
    "nce_loss": Meaning(
        STAGE_2, "NCE loss", "2 log 2 = 1.386 when q and p cannot be told apart"
    ),
    "jsd": Meaning(STAGE_2, "JSD(q, p)", "log 2 - NCE loss / 2; 0 when the prior fits"),
    "audit_jsd_hybrid": Meaning(
        STAGE_2,
        "JSD of pictures, from here on p",
        "lower bound, by a classifier of decoded draws; the groups before are from q",
    ),
    "nce_gain": Meaning(
        STAGE_2,
        "Held-out gain",
        "E_q[log r] - log E_p[r] of a group's ratio: what it adds in likelihood, a "
        "lower bound on KL(q, p)",
    ),
    "nce_log_r_q": Meaning(STAGE_2, "E_q[log r]", "mean log r of posterior draws"),
    "nce_log_z": Meaning(
        STAGE_2,
        "log Z of the group",
        "log E_p[r] with earlier groups from q; 0 for an ideal classifier",
    ),
    "calibration_error": Meaning(
        STAGE_2,
        "Calibration error",
        "mean distance of D = sigmoid(log r) from the share of posterior draws; "
        "0 when log r can be taken at its word",
    ),
    "num_directions": Meaning(
        STAGE_2,
        "Signal directions",
        "of the group's noise that its discriminator reads; 0: r = 1",
    ),
    "signal_total": Meaning(
        STAGE_2,
        "Signal",
        "sum over all directions of how far the posterior mean moves; 0 when q = p "
        "but for its spread",
    ),
    "ess_fraction": Meaning(
        STAGE_2, "ESS fraction", "share of base-prior draws that reweighting keeps"
    ),
}
SAMPLERS = {  # their names in settings and files, and to a reader
    "base": "Base prior p(z)",
    "sir": "NCP by SIR",
    "langevin": "NCP by Langevin",
    "mala": "NCP by MALA",
    "asir": "NCP by adaptive SIR",
    "isir": "NCP by iterated SIR",
    "sirmala": "NCP by SIR, then MALA",
    "vaebm": "VAEBM",
    "sirvaebm": "NCP by SIR, then VAEBM",
}
SOURCES = SAMPLERS | {"floor": "floor", "real": "real pictures"}
SMALL_NETS = ("LeNet", "ResNet20", "ResNet56")  # whose distances are no FID
LOW = "from real pictures; lower is better"
NEAR = "to a training picture, in probability; 0.5 for new pictures, 1 for copies"
FAMILIES = {  # metrics of one kind, one per source of samples
    "fid": ("FID", f"Frechet distance of Inception's features, {LOW}"),
    "kid": ("KID", f"kernel distance of the same, {LOW}"),
    **{
        f"fd_{net.lower()}": (
            f"FD-{net}",
            f"Frechet distance of {net}'s features, {LOW}",
        )
        for net in SMALL_NETS
    },
    **{
        f"kid_{net.lower()}": (f"KID, {net}", f"kernel distance of the same, {LOW}")
        for net in SMALL_NETS
    },
    "audit_jsd": (
        "JSD of pictures",
        "lower bound, by a classifier, from decoded posterior draws; what is left to "
        "be found, 0 when nothing is seen",
    ),
    "mmd": ("MMD(q, ·)²", "squared, from the aggregate posterior; 0 when they agree"),
    "mmd_p": ("p-value of MMD(q, ·)", "of the two being one distribution"),
    "nearer_than_held_out": ("Nearer than held-out pictures", NEAR),
    "off_mode": ("Off-mode share", "samples far from every mode; lower is better"),
    "modes_visited": ("Modes visited", "modes with a sample; higher is better"),
}
OF_CHAINS = {  # what samplers tell of their chains, after their name
    "ess": ("ESS", "effective proposals per draw; near 1 is degenerate"),
    "num_proposals": ("proposals", "weighed for a draw"),
    "bias": ("chi^2 / M", "about how far SIR's law is from its target"),
    "log_z": ("log Z", "as the sampler saw it"),
    "gradient_norm": ("gradient norm", "of the energy, at the last step"),
    "acceptance": ("acceptance", "share of steps that moved"),
    "energy": ("E(x)", "energy of a draw"),
    "energy_change": ("change of E(x)", "from where its chain started"),
    "pixel_change": ("change of x", "root mean square over the pixels"),
}


def printable(results: Mapping[str, Any]) -> list[Quantity]:
    """The metrics that have an interval: a number without one is not printed.

    Args:
      results: the content of `results.json`.

    Returns:
      Quantities by section, known ones first, a name's groups in order.
    """
    sections, known = [LIKELIHOOD, STAGE_2, SAMPLES, OTHER], list(MEANINGS)
    quantities = [
        _quantity(key, metric)
        for key, metric in results.get("metrics", {}).items()
        if metric.get("stderr") is not None
    ]

    def rank(quantity: Quantity) -> tuple[int, int, int]:
        section = sections.index(quantity.meaning.section)
        place = known.index(quantity.name) if quantity.name in known else len(known)
        return section, place, -1 if quantity.group is None else quantity.group

    return sorted(quantities, key=rank)


def without_interval(results: Mapping[str, Any]) -> str:
    """Names of the metrics that are not printed: too few examples or draws.

    Args:
      results: the content of `results.json`.
    """
    hidden = (
        key.partition("/")[0]
        for key, metric in results.get("metrics", {}).items()
        if metric.get("stderr") is None
    )
    return ", ".join(dict.fromkeys(hidden))


def estimate(metric: Mapping[str, Any]) -> tuple[str, str]:
    """The value and "± 1.96 stderr", both to two digits of the latter."""
    value = math.nan if metric.get("value") is None else metric["value"]
    half = Z95 * metric["stderr"]
    if not (math.isfinite(value) and 1e-6 < half < 1e6):
        return f"{value:.6g}", f"± {half:.2g}"
    rounded = float(f"{half:.1e}")  # 0.0999 has the digits of 0.10
    digits = max(0, 1 - math.floor(math.log10(rounded)))
    return f"{value:z,.{digits}f}", f"± {half:,.{digits}f}"


def _quantity(key: str, metric: Mapping[str, Any]) -> Quantity:
    grouped = re.fullmatch(r"(.+)/(\d+)", key)  # "nce_loss/3" is group 3's
    name, group = (grouped[1], int(grouped[2])) if grouped else (key, None)
    n = metric.get("n")
    return Quantity(
        name,
        group,
        _meaning(name),
        *estimate(metric),
        metric.get("unit") or "",
        "" if n is None else f"{n:,}",
    )


def _meaning(name: str) -> Meaning:
    family, _, source = name.rpartition("_")
    if family in FAMILIES and source in SOURCES:
        label, text = FAMILIES[family]
        return Meaning(SAMPLES, f"{label}, {SOURCES[source]}", text)
    source, _, field = name.partition("_")
    if source in SAMPLERS and field in OF_CHAINS:
        label, text = OF_CHAINS[field]
        return Meaning(SAMPLES, f"{SAMPLERS[source]}: {label}", text)
    return MEANINGS.get(name, Meaning(OTHER, name, ""))
