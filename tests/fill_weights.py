"""Deterministic weights, a function of each entry's name and shape alone.

Two implementations of one network whose state dicts agree in names and shapes
hold the same weights after ``fill_``, so their outputs can be compared without
exchanging a checkpoint.
"""

import zlib

import torch


def fill_(module: torch.nn.Module) -> torch.nn.Module:
    """Fill every parameter and buffer of ``module`` in place; returns it.

    An entry's values come from a generator seeded with the CRC-32 of its name.
    Weights are scaled by ``sqrt(2 / fan_in)`` so that signals neither vanish
    nor explode; batch-norm statistics stay near (0, 1).  Entries under
    ``lambdas``, ``init_v``, ``num_batches_tracked`` and ``temperature`` are
    constants of the architecture or of training and stay as they are.
    """
    with torch.no_grad():
        for name, t in module.state_dict().items():
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("num_batches_tracked", "lambdas", "init_v", "temperature"):
                continue
            if not torch.is_tensor(t) or t.ndim == 0 or not t.is_floating_point():
                continue
            g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            r = torch.randn(t.shape, generator=g, dtype=torch.float32)
            if leaf == "running_var":
                v = 1.0 + 0.1 * r.abs()
            elif leaf == "running_mean":
                v = 0.1 * r
            elif t.ndim == 1 and leaf == "weight":  # norm gain
                v = 1.0 + 0.1 * r
            elif t.ndim == 1:  # biases
                v = 0.1 * r
            elif leaf == "head_weight":
                v = 0.25 + 0.05 * r
            elif "exp_conv" in name or "depth_conv" in name or "proj_conv" in name:
                if leaf == "weight" and t.ndim == 4:
                    # a dynamic convolution's k kernels: (1, 1, k, out*in/groups*kh*kw)
                    # with no fan-in in the shape: one scale for all
                    v = 0.15 * r
                else:
                    v = r * (2.0 / max(1, t[0].numel())) ** 0.5
            else:
                v = r * (2.0 / max(1, t[0].numel())) ** 0.5
            t.copy_(v)
    return module
