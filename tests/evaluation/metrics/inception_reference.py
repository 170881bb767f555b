"""TensorFlow's InceptionV3 of December 2015 again, by PyTorch's names and layouts.

Written as one table of paths through the network, for NumPy and for PyTorch: an
`Ops` says what a convolution and the pools are.  Arrays are [B, C, H, W].
"""

import numpy as np

# Of each convolution: channels out, kernel, stride, padding.
STEM = {
    "Conv2d_1a_3x3": (32, (3, 3), 2, (0, 0)),
    "Conv2d_2a_3x3": (32, (3, 3), 1, (0, 0)),
    "Conv2d_2b_3x3": (64, (3, 3), 1, (1, 1)),
    "pool1": "max",
    "Conv2d_3b_1x1": (80, (1, 1), 1, (0, 0)),
    "Conv2d_4a_3x3": (192, (3, 3), 1, (0, 0)),
    "pool2": "max",
}


def one(channels):
    return channels, (1, 1), 1, (0, 0)


def square(channels, size=3):
    return channels, (size, size), 1, (size // 2, size // 2)


def halving(channels):
    return channels, (3, 3), 2, (0, 0)


def wide(channels, size):
    return channels, (1, size), 1, (0, size // 2)


def high(channels, size):
    return channels, (size, 1), 1, (size // 2, 0)


def block_a(pooled):
    return [
        [("branch1x1", one(64))],
        [("branch5x5_1", one(48)), ("branch5x5_2", square(64, 5))],
        [
            ("branch3x3dbl_1", one(64)),
            ("branch3x3dbl_2", square(96)),
            ("branch3x3dbl_3", square(96)),
        ],
        ["average", ("branch_pool", one(pooled))],
    ]


def block_c(c):
    return [
        [("branch1x1", one(192))],
        [
            ("branch7x7_1", one(c)),
            ("branch7x7_2", wide(c, 7)),
            ("branch7x7_3", high(192, 7)),
        ],
        [
            ("branch7x7dbl_1", one(c)),
            ("branch7x7dbl_2", high(c, 7)),
            ("branch7x7dbl_3", wide(c, 7)),
            ("branch7x7dbl_4", high(c, 7)),
            ("branch7x7dbl_5", wide(192, 7)),
        ],
        ["average", ("branch_pool", one(192))],
    ]


def block_e(pool):
    two = [("branch3x3_1", one(384))]
    three = [("branch3x3dbl_1", one(448)), ("branch3x3dbl_2", square(384))]
    return [
        [("branch1x1", one(320))],
        [*two, ("branch3x3_2a", wide(384, 3))],
        [*two, ("branch3x3_2b", high(384, 3))],
        [*three, ("branch3x3dbl_3a", wide(384, 3))],
        [*three, ("branch3x3dbl_3b", high(384, 3))],
        [pool, ("branch_pool", one(192))],
    ]


MIXED = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": [
        [("branch3x3", halving(384))],
        [
            ("branch3x3dbl_1", one(64)),
            ("branch3x3dbl_2", square(96)),
            ("branch3x3dbl_3", halving(96)),
        ],
        ["max"],
    ],
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": [
        [("branch3x3_1", one(192)), ("branch3x3_2", halving(320))],
        [
            ("branch7x7x3_1", one(192)),
            ("branch7x7x3_2", wide(192, 7)),
            ("branch7x7x3_3", high(192, 7)),
            ("branch7x7x3_4", halving(192)),
        ],
        ["max"],
    ],
    "Mixed_7b": block_e("average"),
    "Mixed_7c": block_e("same max"),
}


class NumpyOps:
    """float64, by windows."""

    def windows(self, x, kernel, stride, padding, fill):
        pads = ((0, 0), (0, 0), *((p, p) for p in padding))
        x = np.pad(x, pads, constant_values=fill)
        view = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))
        return view[:, :, ::stride, ::stride]  # [B, C, H, W, kh, kw]

    def conv(self, x, weight, stride, padding):
        view = self.windows(x, weight.shape[2:], stride, padding, 0.0)
        return np.moveaxis(np.tensordot(view, weight, ((1, 4, 5), (1, 2, 3))), 3, 1)

    def max(self, x):
        return self.windows(x, (3, 3), 2, (0, 0), 0.0).max((4, 5))

    def same_max(self, x):
        return self.windows(x, (3, 3), 1, (1, 1), -np.inf).max((4, 5))

    def average(self, x):
        view = self.windows(x, (3, 3), 1, (1, 1), np.nan)  # outside: not counted
        return np.nanmean(view, (4, 5))

    def relu(self, x):
        return np.maximum(x, 0)

    def cat(self, parts):
        return np.concatenate(parts, 1)


class TorchOps:
    """PyTorch's own layers."""

    def __init__(self, functional, cat):
        self.f, self.cat_ = functional, cat

    def conv(self, x, weight, stride, padding):
        return self.f.conv2d(x, weight, stride=stride, padding=padding)

    def max(self, x):
        return self.f.max_pool2d(x, 3, 2)

    def same_max(self, x):
        return self.f.max_pool2d(x, 3, 1, 1)

    def average(self, x):
        return self.f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def relu(self, x):
        return self.f.relu(x)

    def cat(self, parts):
        return self.cat_(parts, 1)


def run(ops, state, x):
    """The outputs of every part by its name, "features" and "logits" among them.

    Args:
      ops: `NumpyOps` or `TorchOps`.
      state: PyTorch's names to tensors.
      x: [B, 3, H, W] in [-1, 1].
    """
    out = {}

    def conv(name, x, stride, padding):
        bn = {k: state[f"{name}.bn.{k}"][None, :, None, None] for k in BN}
        y = ops.conv(x, state[f"{name}.conv.weight"], stride, padding)
        y = (y - bn["running_mean"]) / (bn["running_var"] + 1e-3) ** 0.5
        out[name] = ops.relu(y * bn["weight"] + bn["bias"])
        return out[name]

    def step(prefix, entry, x):
        if isinstance(entry, str):
            return getattr(ops, entry.replace(" ", "_"))(x)
        name, (_, _, stride, padding) = entry
        return conv(prefix + name, x, stride, padding)

    for name, entry in STEM.items():
        x = step("", entry if isinstance(entry, str) else (name, entry), x)
    for block, branches in MIXED.items():
        ends = []
        for branch in branches:
            y = x
            for entry in branch:
                y = step(f"{block}.", entry, y)
            ends.append(y)
        out[block] = x = ops.cat(ends)
    out["features"] = x.mean((2, 3))
    out["logits"] = out["features"] @ state["fc.weight"].T + state["fc.bias"]
    return out


BN = ("weight", "bias", "running_mean", "running_var")


def shapes():
    """PyTorch's names of all tensors to their shapes."""
    found = {}

    def conv(name, size, spec):
        channels, kernel, _, _ = spec
        found[f"{name}.conv.weight"] = (channels, size, *kernel)
        found.update({f"{name}.bn.{k}": (channels,) for k in BN})
        return channels

    size = 3
    for name, spec in STEM.items():
        size = size if isinstance(spec, str) else conv(name, size, spec)
    for block, branches in MIXED.items():
        total = 0
        for branch in branches:
            inner = size
            for entry in branch:
                if not isinstance(entry, str):
                    inner = conv(f"{block}.{entry[0]}", inner, entry[1])
            total += inner
        size = total
    return {**found, "fc.weight": (1008, size), "fc.bias": (1008,)}


def random_state(seed):
    """Weights under which signals neither die nor grow, every tensor different."""
    generator = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes().items():
        noise = generator.standard_normal(shape, np.float32)
        if name.endswith(("running_var", "bn.weight")):
            state[name] = 1 + 0.5 * np.tanh(noise)
        elif len(shape) > 1:
            state[name] = noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        else:
            state[name] = 0.1 * noise
    return state
