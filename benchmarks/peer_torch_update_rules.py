"""Trajectories of published implementations of update rules, in float64: what ours are held to.

    python benchmarks/peer_torch_update_rules.py --out tests/optimizers/golden.json

runs in an environment of its own (torch, pytorch-optimizer, dog-optimizer, madgrad, adamp). The
problem is written down in `gradients`: a matrix and a vector, whose gradients depend on the step
and on the parameters; from sines, so that any language repeats it.
"""

import argparse
import importlib.metadata
import json
from pathlib import Path

import adamp
import dog
import numpy as np
import pytorch_optimizer as po
import torch
from pytorch_optimizer.optimizer.utils.graft import LayerWiseGrafting

STEPS = 50
KEPT = (1, 2, 5, 20, 50)
SHAPES = {"w": (4, 3), "b": (3,)}
TENSOR = {"t": (3, 2, 4)}
PACKAGES = ("torch", "pytorch-optimizer", "dog-optimizer", "madgrad", "adamp")

# name: (class, settings).
RULES = {
    "ademamix": (po.AdEMAMix, {"lr": 0.01, "betas": (0.9, 0.999, 0.99), "alpha": 5.0}),
    "ademamix_scheduled": (
        po.AdEMAMix,
        {"lr": 0.01, "betas": (0.9, 0.999, 0.9999), "alpha": 8.0, "t_alpha_beta3": 30},
    ),
    "grams": (po.Grams, {"lr": 0.01, "eps": 1e-6}),
    "grams_decay": (po.Grams, {"lr": 0.01, "eps": 1e-6, "weight_decay": 0.1}),
    "dog": (dog.DoG, {"reps_rel": 1e-2}),
    "ldog": (dog.LDoG, {"reps_rel": 1e-2}),
    "madgrad": (po.MADGRAD, {"lr": 0.01, "momentum": 0.9}),
    "adamp": (adamp.AdamP, {"lr": 0.01, "weight_decay": 0.1}),
    "adamp_projected": (adamp.AdamP, {"lr": 0.01, "weight_decay": 0.1, "delta": 2.0}),
    "sgdp": (po.SGDP, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "delta": 2.0}),
    "sgdp_nesterov": (
        po.SGDP,
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    ),
    "diffgrad": (po.DiffGrad, {"lr": 0.01}),
    "shampoo_sum": (po.Shampoo, {"lr": 0.01, "matrix_eps": 1e-6}),
    "shampoo_sgd_graft": (
        po.ScalableShampoo,
        {"lr": 0.01, "graft_type": LayerWiseGrafting.SGD},
    ),
    "shampoo_adagrad_graft": (
        po.ScalableShampoo,
        {"lr": 0.01, "graft_type": LayerWiseGrafting.ADAGRAD},
    ),
    "shampoo_rmsprop_graft": (
        po.ScalableShampoo,
        {"lr": 0.01, "graft_type": LayerWiseGrafting.RMSPROP},
    ),
    "shampoo_blocks": (
        po.ScalableShampoo,
        {
            "lr": 0.01,
            "graft_type": LayerWiseGrafting.ADAGRAD,
            "start_preconditioning_step": 4,
            "nesterov": True,
            "block_size": 2,
        },
    ),
    "shampoo_tensor": (
        po.ScalableShampoo,
        {"lr": 0.01, "graft_type": LayerWiseGrafting.SGD},
    ),
    "shampoo_tensor_blocks": (
        po.ScalableShampoo,
        {"lr": 0.01, "graft_type": LayerWiseGrafting.ADAGRAD, "block_size": 2},
    ),
    "sam": (po.SAM, {"base_optimizer": torch.optim.SGD, "lr": 0.05, "rho": 0.1}),
    "sam_adaptive": (
        po.SAM,
        {"base_optimizer": torch.optim.SGD, "lr": 0.05, "rho": 0.1, "adaptive": True},
    ),
}
SCALABLE = {
    "betas": (0.9, 0.99),
    "start_preconditioning_step": 1,
    "preconditioning_compute_steps": 1,
    "nesterov": False,
    "use_svd": True,
    "shape_interpretation": False,
}


def start(shapes):
    """Parameters before the first step."""
    return {
        name: np.cos(1.0 + np.arange(np.prod(shape)).reshape(shape))
        for name, shape in shapes.items()
    }


def gradients(params, step):
    """Those of step 0, 1, ...: `sin((step + 1) (index + 1)) + params / 2`, for each array."""
    return {
        name: np.sin((step + 1) * (1.0 + np.arange(p.size)).reshape(p.shape)) + 0.5 * p
        for name, p in params.items()
    }


def run(make, settings, shapes):
    """Parameters after the steps that are kept."""
    if make is po.ScalableShampoo:
        settings = {**SCALABLE, **settings}
    tensors = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start(shapes).items()}
    rule = make(list(tensors.values()), **settings)

    def fill(step):
        now = {name: t.detach().numpy() for name, t in tensors.items()}
        for name, g in gradients(now, step).items():
            tensors[name].grad = torch.tensor(g)

    kept = {}
    for step in range(STEPS):
        fill(step)
        if make is po.SAM:
            rule.first_step(zero_grad=True)
            fill(step)
            rule.second_step(zero_grad=True)
        else:
            rule.step()
        if step + 1 in KEPT:
            kept[step + 1] = {name: t.detach().numpy().tolist() for name, t in tensors.items()}
    return kept


def averaged(gamma=8.0):
    """SGD with polynomially decaying averaging of its iterates."""
    tensor = torch.nn.Parameter(torch.tensor(start(SHAPES)["b"]))
    model = torch.nn.ParameterList([tensor])
    averager, rule = dog.PolynomialDecayAverager(model, gamma=gamma), torch.optim.SGD([tensor], 0.1)
    kept = {}
    for step in range(STEPS):
        tensor.grad = torch.tensor(gradients({"b": tensor.detach().numpy()}, step)["b"])
        rule.step()
        averager.step()
        if step + 1 in KEPT:
            (mean,) = averager.averaged_model.parameters()
            kept[step + 1] = {"b": mean.detach().numpy().tolist()}
    return kept


def plain(settings):
    """Settings as JSON."""
    return {name: getattr(value, "__name__", str(value)) for name, value in settings.items()}


def main():
    """Writes all trajectories."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    record = {
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "rules": {
            name: {
                "settings": plain(settings),
                "params": run(make, settings, TENSOR if "tensor" in name else SHAPES),
            }
            for name, (make, settings) in RULES.items()
        },
    }
    record["rules"]["polynomial_averaging"] = {
        "settings": {"lr": 0.1, "gamma": 8.0},
        "params": averaged(),
    }
    # A line per rule.
    lines = [f" {json.dumps(name)}: {json.dumps(rule)}" for name, rule in record["rules"].items()]
    rules = "{\n" + ",\n".join(lines) + "\n}"
    out.write_text(f'{{"versions": {json.dumps(record["versions"])},\n"rules": {rules}}}\n')


if __name__ == "__main__":
    main()
