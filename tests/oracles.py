"""Models so small that their densities are known in closed form."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from ncp_jax import rng
from ncp_jax.models.base import Block, Encoding, GroupPrior
from ncp_jax.models.distributions import Normal
from ncp_jax.priors.ncp_prior import NCPPrior


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearGaussianVAE:
    """z ~ N(0, I) in L dimensions, x | z ~ N(W z, std^2 I) in D.

    The columns of W are orthogonal, so the exact posterior is diagonal; q is that
    posterior with its mean moved by `q_shift` and its deviation times `q_scale`.
    """

    weights: jax.Array  # [D, L]
    std: float = 0.5
    q_shift: float = 0.0
    q_scale: float = 1.0

    @property
    def blocks(self):
        return (Block(1, (self.weights.shape[1],), (0,)),)

    def posterior(self, x):
        precision = 1.0 + jnp.sum(self.weights**2, 0) / self.std**2  # [L]
        mean = x @ self.weights / self.std**2 / precision[None]
        std = jnp.broadcast_to(precision[None] ** -0.5, mean.shape)
        return Normal(mean, std)

    def encode(self, x, key):
        exact = self.posterior(x)
        q = Normal(exact.mean + self.q_shift, exact.std * self.q_scale)
        z = q.sample(key)
        return Encoding((z[None],), q.log_prob(z)[:, None])

    def root(self, batch_size):
        return jnp.zeros((batch_size, self.weights.shape[1]))

    def prior(self, block, k, carry):
        standard = Normal(jnp.zeros_like(carry), jnp.ones_like(carry))
        return GroupPrior(standard, jnp.zeros((carry.shape[0], 0)))

    def absorb(self, block, k, carry, z_k):
        return z_k

    def decode(self, carry):
        mean = carry @ self.weights.T
        return Normal(mean, jnp.full_like(mean, self.std))

    def log_marginal(self, x, tilt=0.0):
        """Exact log p(x) where z ~ N(tilt, I): [B], float64."""
        weights = np.asarray(self.weights, np.float64)
        mean = weights @ np.broadcast_to(np.float64(tilt), weights.shape[1])
        covariance = weights @ weights.T + self.std**2 * np.eye(len(weights))
        return scipy.stats.multivariate_normal(mean, covariance).logpdf(x)


class QuadraticRatio(nn.Module):
    """log r(z) = bias + slope . z + curvature . z^2: the ratio of two normals."""

    def __call__(self, z, context):
        return self.log_ratio(z, self.embed(context))

    def embed(self, context):
        return ()

    @nn.compact
    def log_ratio(self, z, feature):
        zeros, flat = nn.initializers.zeros, z.reshape(z.shape[0], -1)
        slope = self.param("slope", zeros, flat.shape[1:])
        curvature = self.param("curvature", zeros, flat.shape[1:])
        bias = self.param("bias", zeros, ())
        return bias + flat @ slope + flat**2 @ curvature


def tilted(vae, tilt):
    """The NCP with log r(z) = tilt . z: p_NCP(z) = N(tilt, I), log Z = |tilt|^2 / 2."""
    slope = jnp.asarray(tilt)[None]
    params = {
        "slope": slope,
        "curvature": jnp.zeros_like(slope),
        "bias": jnp.zeros(1),
    }
    return NCPPrior(vae, QuadraticRatio(), (params,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChainVAE:
    """z_0 ~ N(0, 1), z_1 | z_0 ~ N(gain z_0, 0.8^2), x | z ~ N(w . z, 0.5^2).

    All are scalars; q is the exact posterior.  Its NCP has log r_k = slope_k z_k.
    """

    gain: float = 0.9
    weights: tuple[float, float] = (0.7, 0.6)
    is_split: bool = dataclasses.field(default=False, metadata={"static": True})
    std, noise = 0.8, 0.5  # of z_1 given z_0, of x given z

    @property
    def blocks(self):
        one = Block(1, (1,), (1,))
        return (one, one) if self.is_split else (Block(2, (1,), (1,)),)

    def encode(self, x, key):
        (w_0, w_1), s, sigma = self.weights, self.std, self.noise
        reach, spread = w_0 + w_1 * self.gain, (w_1 * s) ** 2 + sigma**2
        precision = 1 + reach**2 / spread
        q_0 = Normal(reach / spread / precision * x, jnp.full_like(x, precision**-0.5))
        z_0 = q_0.sample(rng.at_step(key, 0))
        precision = s**-2 + (w_1 / sigma) ** 2
        mean = self.gain * z_0 / s**2 + w_1 * (x - w_0 * z_0) / sigma**2
        q_1 = Normal(mean / precision, jnp.full_like(x, precision**-0.5))
        z_1 = q_1.sample(rng.at_step(key, 1))
        log_q = jnp.stack([q_0.log_prob(z_0), q_1.log_prob(z_1)], 1)
        latents = (z_0[None], z_1[None])
        return Encoding(
            latents if self.is_split else (jnp.concatenate(latents),), log_q
        )

    def root(self, batch_size):
        return jnp.zeros((2, batch_size, 1))

    def prior(self, block, k, carry):
        is_first = jnp.asarray(block + k) == 0
        mean = jnp.where(is_first, 0.0, self.gain * carry[0])
        std = jnp.where(is_first, 1.0, jnp.full_like(mean, self.std))
        return GroupPrior(Normal(mean, std), carry[0])

    def absorb(self, block, k, carry, z_k):
        return carry.at[block + k].set(z_k)

    def decode(self, carry):
        mean = self.weights[0] * carry[0] + self.weights[1] * carry[1]
        return Normal(mean, jnp.full_like(mean, self.noise))

    def ncp(self, slopes):
        params = {
            "slope": jnp.asarray(slopes, jnp.float32)[:, None],
            "curvature": jnp.zeros((2, 1)),
            "bias": jnp.zeros(2),
        }
        each = [jax.tree.map(lambda v, k=k: v[k : k + 1], params) for k in (0, 1)]
        return NCPPrior(
            self, QuadraticRatio(), tuple(each) if self.is_split else (params,)
        )

    def log_marginal(self, x, shifts=(0.0, 0.0)):
        """log p(x) where both z_k, given z_<k, are moved by so much; float64."""
        (w_0, w_1), (d_0, d_1) = self.weights, shifts
        reach = w_0 + w_1 * self.gain
        variance = reach**2 + (w_1 * self.std) ** 2 + self.noise**2
        return scipy.stats.norm.logpdf(x, reach * d_0 + w_1 * d_1, variance**0.5)

    def log_sir_marginal(self, x, slopes, num_proposals):
        """log p(x) of ancestral SIR with 1 to 3 proposals, by quadrature; float64."""
        t = np.linspace(-8, 8, 641)
        density = scipy.stats.norm.pdf(t) * (t[1] - t[0])
        s_0 = density * _chosen(slopes[0] * t, num_proposals, slopes[0])
        s_1 = density * _chosen(
            slopes[1] * self.std * t, num_proposals, slopes[1] * self.std
        )
        z_0 = t[:, None]
        z_1 = self.gain * z_0 + self.std * t[None]
        mean = self.weights[0] * z_0 + self.weights[1] * z_1
        p_x = scipy.stats.norm.pdf(np.reshape(x, (-1, 1, 1)), mean[None], self.noise)
        return np.log(np.einsum("xij,i,j->x", p_x, s_0, s_1))


def _chosen(log_r, num_proposals, slope):
    """E[M r / (r + the others' r)] for others of log r = slope t, t ~ N(0, 1)."""
    t, weights = np.polynomial.hermite_e.hermegauss(64)
    weights = weights / weights.sum()
    r, others, share = np.exp(log_r), np.zeros(1), np.ones(1)
    for _ in range(num_proposals - 1):
        others = np.add.outer(others, np.exp(slope * t)).ravel()
        share = np.multiply.outer(share, weights).ravel()
    return (num_proposals * r[:, None] / (r[:, None] + others[None])) @ share


class TwoBlockVAE(nn.Module):
    """z_1 ~ N(0, I), z_2 | z_1 ~ N(gain z_1, 0.8^2 I), of different shapes."""

    blocks = (Block(1, (2,), (0,)), Block(1, (2, 1), (2,)))
    data_shape = (3,)

    def setup(self):
        self.gain = self.param("gain", lambda _: jnp.full((), 0.5))
        self.encoder, self.decoder = nn.Dense(4), nn.Dense(3)

    def __call__(self, x, key):
        self.encode(x, key)
        return self.decode(self.root(x.shape[0]))

    def encode(self, x, key):
        means = jnp.split(self.encoder(x), 2, axis=-1)
        latents, log_q = [], []
        for k, mean in enumerate([means[0], means[1][..., None]]):
            q = Normal(mean, jnp.full_like(mean, 0.7))
            z_k = q.sample(rng.at_step(key, k))
            latents.append(z_k[None])
            log_q.append(q.log_prob(z_k))
        return Encoding(tuple(latents), jnp.stack(log_q, 1))

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2)), jnp.zeros((batch_size, 2))

    def prior(self, block, k, carry):
        z_1, _ = carry
        if block == 0:
            base = Normal(jnp.zeros_like(z_1), jnp.ones_like(z_1))
            return GroupPrior(base, jnp.zeros((z_1.shape[0], 0)))
        mean = self.gain * z_1[..., None]
        return GroupPrior(Normal(mean, jnp.full_like(mean, 0.8)), z_1)

    def absorb(self, block, k, carry, z_k):
        return (z_k, carry[1]) if block == 0 else (carry[0], z_k[..., 0])

    def decode(self, carry):
        mean = self.decoder(jnp.concatenate(carry, axis=-1))
        return Normal(mean, jnp.ones_like(mean))


class ThreeGroupVAE(nn.Module):
    """z_k | z_{k-1} ~ N(gain[k] z_{k-1}, std[k]^2 I), three groups in one block."""

    blocks = (Block(3, (2,), (2,)),)
    data_shape = (3,)

    def setup(self):
        self.gain = self.param("gain", lambda _: jnp.array([0.0, 0.5, -0.8]))
        self.std = self.param("std", lambda _: jnp.array([1.0, 0.8, 0.6]))
        self.encoder, self.decoder = nn.Dense(6), nn.Dense(3)

    def __call__(self, x, key):
        self.encode(x, key)
        return self.decode(self.root(x.shape[0]))

    def encode(self, x, key):
        mean = self.encoder(x).reshape(-1, 3, 2).swapaxes(0, 1)  # [3, B, 2]

        def one(k, mean):
            q = Normal(mean, jnp.full_like(mean, 0.7))
            z_k = q.sample(rng.at_step(key, k))
            return z_k, q.log_prob(z_k)

        z, log_q = jax.vmap(one)(jnp.arange(3), mean)
        return Encoding((z,), log_q.T)

    def root(self, batch_size):
        return jnp.zeros((batch_size, 2)), jnp.zeros((batch_size, 2))

    def prior(self, block, k, carry):
        previous, _ = carry
        mean = self.gain[k] * previous
        base = Normal(mean, jnp.full_like(mean, self.std[k]))
        return GroupPrior(base, previous)

    def absorb(self, block, k, carry, z_k):
        return z_k, carry[1] + z_k

    def decode(self, carry):
        mean = self.decoder(carry[1])
        return Normal(mean, jnp.ones_like(mean))


class InterleavedVAE(ThreeGroupVAE):
    """The same three groups, each a block of its own; the second has another shape."""

    blocks = tuple(Block(1, shape, (2,)) for shape in ((2,), (2, 1), (2,)))

    def encode(self, x, key):
        (z,), log_q = super().encode(x, key)
        latents = (self._shaped(b, z_k)[None] for b, z_k in enumerate(z))
        return Encoding(tuple(latents), log_q)

    def prior(self, block, k, carry):
        (mean, std), context = super().prior(block, k, carry)
        base = Normal(self._shaped(block, mean), self._shaped(block, std))
        return GroupPrior(base, context)

    def absorb(self, block, k, carry, z_k):
        return super().absorb(block, k, carry, z_k.reshape(-1, 2))

    def _shaped(self, block, z_k):
        return z_k.reshape(-1, *self.blocks[block].latent_shape)


# --- a hierarchy with a hole in few of its directions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConditionalHoleVAE:
    """K groups in D dimensions, each with a hole in m directions, in closed form.

    Base prior: z_k = gain_k e_{k-1} + scale_k e_k with e_k ~ N(0, I_D), so e_k are the
    standardised latents.  Data: x [K, m] ~ N(0, I).  Encoder: in the coordinates
    u_k = U_k^T e_k

      u_k | u_{k-1}, x ~ N(aim_k + told spread_k x_k, (1 - told^2) spread_k^2),
      aim_k = A_k u_{k-1} + shift_k,

    and the other D - m directions of e_k are N(0, I).  Over the data therefore
    q(u_k | z_<k) = N(aim_k, spread_k^2) where the prior has N(0, I):

      log r_k = log N(u_k; aim_k, spread_k^2) - log N(u_k; 0, I), log Z_k(z_<k) = 0.

    p(x_k | z) = N(told (u_k - aim_k) / spread_k, 1 - told^2): q(z | x) is the exact
    posterior under the NCP, whose p(x) is that of the data.
    """

    directions: jax.Array  # U [K, D, m], orthonormal columns
    transition: jax.Array  # A [K, m, m]; zero for the first group
    shift: jax.Array  # [K, m]
    spread: jax.Array  # [K, m], below 1: r is bounded given z_<k
    gain: jax.Array  # [K]
    scale: jax.Array  # [K, D]
    told: float = 0.9  # share of the standard deviation of u_k that x tells

    @property
    def blocks(self):
        num_groups, latent_dim, _ = self.directions.shape
        return (Block(num_groups, (latent_dim,), (latent_dim,)),)

    @property
    def data_shape(self):
        return self.shift.shape

    def data(self, key, num_examples):
        return jax.random.normal(key, (num_examples, *self.data_shape))

    def encode(self, x, key):
        """Draws z ~ q(z | x), or takes the mean of every group where `key` is None."""
        carry, latents, log_q = self.root(len(x)), [], []
        for k in range(len(self.gain)):
            base, _ = self.prior(0, k, carry)
            told = self.aim(k, carry) + self.told * self.spread[k][None] * x[:, k]
            q = Normal(
                told, self._untold() * jnp.broadcast_to(self.spread[k], told.shape)
            )
            if key is None:
                u, e = told, jnp.zeros_like(base.mean)
            else:
                group_key = rng.at_step(key, k)
                u = q.sample(rng.stream(group_key, "signal"))
                e = jax.random.normal(rng.stream(group_key, "rest"), base.mean.shape)
            e = e + (u - e @ self.directions[k]) @ self.directions[k].T
            z_k = base.mean + base.std * e
            latents.append(z_k)
            log_q.append(base.log_prob(z_k) + q.log_prob(u) - _standard(u))
            carry = self.absorb(0, k, carry, z_k)
        return Encoding((jnp.stack(latents),), jnp.stack(log_q, 1))

    def root(self, batch_size):
        """e_{k-1} [B, D], u_{k-1} [B, m] and the means of x [B, K, m]."""
        _, latent_dim, num_directions = self.directions.shape
        e, u = (jnp.zeros((batch_size, n)) for n in (latent_dim, num_directions))
        return e, u, jnp.zeros((batch_size, *self.data_shape))

    def prior(self, block, k, carry):
        mean = self.gain[k] * carry[0]
        std = jnp.broadcast_to(self.scale[k][None], mean.shape)
        return GroupPrior(Normal(mean, std), carry[0])

    def absorb(self, block, k, carry, z_k):
        e = self.standardised(k, carry, z_k)
        u = e @ self.directions[k]
        mean = self.told * (u - self.aim(k, carry)) / self.spread[k][None]
        return e, u, carry[2].at[:, k].set(mean)

    def decode(self, carry):
        return Normal(carry[2], jnp.full_like(carry[2], self._untold()))

    def standardised(self, k, carry, z_k):
        """e_k [B, D]."""
        return (z_k - self.gain[k] * carry[0]) / self.scale[k][None]

    def aim(self, k, carry):
        """E_q[u_k | z_<k]: [B, m]."""
        return carry[1] @ self.transition[k].T + self.shift[k][None]

    def _untold(self):
        return (1.0 - self.told**2) ** 0.5

    def log_ratio(self, latents):
        """log r_k(z_k | z_<k) of latents ([K, B, D],): [B, K], nats."""
        carry, log_r = self.root(latents[0].shape[1]), []
        for k, z_k in enumerate(latents[0]):
            u = self.standardised(k, carry, z_k) @ self.directions[k]
            aim = self.aim(k, carry)
            q = Normal(aim, jnp.broadcast_to(self.spread[k][None], aim.shape))
            log_r.append(q.log_prob(u) - _standard(u))
            carry = self.absorb(0, k, carry, z_k)
        return jnp.stack(log_r, 1)

    def ncp(self):
        """The NCP with these very ratios."""
        before = jnp.roll(self.directions, 1, axis=0).at[0].set(0.0)
        params = {"before": before} | {
            name: getattr(self, name)
            for name in ("directions", "transition", "shift", "spread", "gain", "scale")
        }
        return NCPPrior(self, ConditionalHoleRatio(), (params,))

    def signal_moments(self):
        """Mean [K, m] and covariance [K, m, m] of u_k under q; float64."""
        num_directions = self.shift.shape[1]
        mean, covariance = np.zeros(num_directions), np.zeros([num_directions] * 2)
        means, covariances = [], []
        for k in range(len(self.gain)):
            transition = np.asarray(self.transition[k], np.float64)
            mean = transition @ mean + np.asarray(self.shift[k], np.float64)
            covariance = transition @ covariance @ transition.T
            covariance = covariance + np.diag(np.asarray(self.spread[k], float) ** 2)
            means.append(mean)
            covariances.append(covariance)
        return np.stack(means), np.stack(covariances)

    def gains(self):
        """E_q[log r_k] = KL(q(z_k | z_<k) || p(z_k | z_<k)): [K] nats, float64.

        Since log Z_k = 0, this is what group k adds to the ELBO.
        """
        means, covariances = self.signal_moments()
        second = np.diagonal(covariances, axis1=1, axis2=2) + means**2  # E[u^2]
        spread = np.asarray(self.spread, np.float64)
        return np.sum(0.5 * (second - 1.0) - np.log(spread), axis=1)

    def base_marginal(self):
        """Mean [K m] and covariance of x, flat, under the base prior; float64."""
        num_groups, m = self.shift.shape
        spread = np.asarray(self.spread, np.float64).ravel()
        steps = np.eye(num_groups * m)  # u - A u_before, of all u side by side
        for k in range(1, num_groups):
            rows, columns = slice(k * m, (k + 1) * m), slice((k - 1) * m, k * m)
            steps[rows, columns] = -np.asarray(self.transition[k], np.float64)
        reach = self.told * steps / spread[:, None]
        mean = -self.told * np.asarray(self.shift, np.float64).ravel() / spread
        return mean, reach @ reach.T + (1.0 - self.told**2) * np.eye(len(mean))

    def log_marginal(self, x):
        """log p(x) under the base prior: [B], float64."""
        flat = np.asarray(x, np.float64).reshape(len(x), -1)
        return scipy.stats.multivariate_normal(*self.base_marginal()).logpdf(flat)

    def log_marginal_ncp(self, x):
        """log p(x) under the NCP: that of the data, N(0, I); [B], float64."""
        flat = np.asarray(x, np.float64).reshape(len(x), -1)
        return scipy.stats.norm.logpdf(flat).sum(1)

    def nll_gain(self):
        """E_data[log p_NCP(x) - log p(x)], nats; at most the sum of `gains`."""
        mean, covariance = self.base_marginal()
        inverse = np.linalg.inv(covariance)
        _, log_det = np.linalg.slogdet(covariance)
        return 0.5 * (np.trace(inverse) + mean @ inverse @ mean - len(mean) + log_det)


class ConditionalHoleRatio(nn.Module):
    """The exact ratio of one group of `ConditionalHoleVAE`, given its parameters."""

    def __call__(self, z, context):
        return self.log_ratio(z, self.embed(context))

    def embed(self, context):
        """p's mean of z_k and q's mean of u_k, of e_{k-1} [B, D]."""
        transition, shift = self._of("transition"), self._of("shift")
        aim = context @ self._of("before") @ transition.T + shift[None]
        return self._of("gain") * context, aim

    def log_ratio(self, z, feature):
        mean, aim = feature
        u = (z - mean) / self._of("scale")[None] @ self._of("directions")
        q = Normal(aim, jnp.broadcast_to(self._of("spread")[None], aim.shape))
        return q.log_prob(u) - _standard(u)

    def _of(self, name):
        return self.get_variable("params", name)


def conditional_hole(num_groups=3, latent_dim=40, num_directions=2, seed=0, told=0.9):
    """A `ConditionalHoleVAE` with gains of 0.73, 1.16 and 0.74 nats by default."""
    generator = np.random.default_rng(seed)
    shape = (num_groups, num_directions)
    columns = generator.normal(size=(num_groups, latent_dim, num_directions))
    transition = 0.5 * generator.normal(size=(*shape, num_directions))
    transition[0] = 0.0
    parts = (
        np.linalg.qr(columns)[0],
        transition,
        0.5 * generator.normal(size=shape),
        generator.uniform(0.5, 0.7, shape),
        generator.uniform(-1.0, 1.0, num_groups),
        generator.uniform(0.5, 2.0, (num_groups, latent_dim)),
    )
    arrays = (jnp.asarray(part, jnp.float32) for part in parts)
    return ConditionalHoleVAE(*arrays, told=told)


def _standard(u):
    """log N(u; 0, I): [B]."""
    return Normal(jnp.zeros_like(u), jnp.ones_like(u)).log_prob(u)
