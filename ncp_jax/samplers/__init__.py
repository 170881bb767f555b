"""Draw z ~ r(z) p(z) / Z: resampling and Langevin dynamics (Sec. 4.3), and corrected.

Samplers see arrays and functions, never a VAE, a config or a checkpoint.  Every one
has the shape `sampler(keys, ...) -> (draws, info)` with a PRNG key per chain, and what
chain b draws depends on `keys[b]` alone: neither on its company nor on how chains are
laid on devices.
"""

from ncp_jax.samplers.dynamics import (
    LangevinInfo,
    MALAInfo,
    SIRThenMALAInfo,
    langevin,
    mala,
    sir_then_mala,
)
from ncp_jax.samplers.rejection import RejectionInfo, truncated_rejection
from ncp_jax.samplers.resampling import (
    AdaptiveSIRInfo,
    IteratedSIRInfo,
    SIRInfo,
    adaptive_sir,
    iterated_sir,
    sir,
)

__all__ = [
    "AdaptiveSIRInfo",
    "IteratedSIRInfo",
    "LangevinInfo",
    "MALAInfo",
    "RejectionInfo",
    "SIRInfo",
    "SIRThenMALAInfo",
    "adaptive_sir",
    "iterated_sir",
    "langevin",
    "mala",
    "sir",
    "sir_then_mala",
    "truncated_rejection",
]
