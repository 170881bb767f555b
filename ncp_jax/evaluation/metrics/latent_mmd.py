"""MMD between the aggregate posterior and priors, in every latent group (Table 9)."""

from collections.abc import Mapping, Sequence

import numpy as np

from ncp_jax.evaluation.importance import Estimate
from ncp_jax.evaluation.metrics import gaussian_kernel, two_sample

Groups = Sequence[np.ndarray]  # of each group k: [n, D_k]


def groups_of(latents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Latents per block [n, num_groups, *latent_shape] as one [n, D_k] per group."""
    return [
        block[:, k].reshape(len(block), -1)
        for block in latents
        for k in range(block.shape[1])
    ]


def per_group(
    posterior: Groups,
    priors: Mapping[str, Groups],
    *,
    seed: int,
    num_permutations: int,
    num_components: int = 500,
) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """The squared MMD of q(z_k) from every prior's z_k, in every group.

    In each group one Gaussian kernel, on the principal axes of all samples pooled and
    with their median distance as bandwidth, serves all priors, so that their values
    compare.  Values of different groups do not: each has its own kernel.

    Args:
      posterior: draws of the aggregate posterior.
      priors: draws by the name of what drew them.
      seed: of the kernel's choice of points and of the permutations.
      num_permutations: of each test.
      num_components: principal axes, the paper's 500.

    Returns:
      `mmd_NAME` and `mmd_p_NAME`, the permutation test's p-value with the error that
      the number of permutations leaves, of each group; and arrays for the page:
      `mmd_null_NAME` [K, 2], the values between which 95 % lie where both are the same
      distribution; `mmd_kernel` [K, 2], bandwidth and share of the variance kept.

    Raises:
      InputError: fewer than three samples, or samples that are not finite.
    """
    num_groups = len(posterior)
    estimates: dict[str, Estimate] = {}
    nulls: dict[str, list[tuple[float, float]]] = {name: [] for name in priors}
    kernels = []
    for k, q in enumerate(posterior):
        drawn = {name: groups[k] for name, groups in priors.items()}
        pooled = np.concatenate([q, *drawn.values()])
        kernel = gaussian_kernel.fit(pooled, seed=seed, num_components=num_components)
        kernels.append((kernel.bandwidth, kernel.explained))
        suffix = f"/{k}" if num_groups > 1 else ""
        for name, p in drawn.items():
            found = two_sample.mmd(
                q, p, kernel, seed=seed, num_permutations=num_permutations
            )
            estimates[f"mmd_{name}{suffix}"] = found.distance
            estimates[f"mmd_p_{name}{suffix}"] = _p_value(
                found.p_value, num_permutations
            )
            nulls[name].append(found.null_interval)
    arrays = {f"mmd_null_{name}": np.array(rows) for name, rows in nulls.items()}
    return estimates, arrays | {"mmd_kernel": np.array(kernels)}


def _p_value(p: float, num_permutations: int) -> Estimate:
    stderr = float(np.sqrt(p * (1 - p) / (1 + num_permutations)))
    return Estimate(p, stderr, num_permutations, "probability")
