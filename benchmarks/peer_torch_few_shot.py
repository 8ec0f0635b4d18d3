"""Meta-gradients of few-shot learners by the PyTorch peers: their side of `few_shot_parity.py`.

The environment and the treatment of learn2learn are those of `peer_torch_maml.py`. Reads
`arrays.npz` in the folder, writes one npz per method and library there, and their versions.
"""

import argparse
import importlib.metadata
import json
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

arguments = argparse.ArgumentParser()
arguments.add_argument("--folder", required=True)
arguments.add_argument("--settings", type=json.loads, required=True)
arguments.add_argument("--learn2learn", default=None)
ARGS = arguments.parse_args()
LR, STEPS = ARGS.settings["inner_lr"], ARGS.settings["steps"]
ARRAYS = dict(np.load(f"{ARGS.folder}/arrays.npz"))
TASKS = [
    tuple(torch.tensor(ARRAYS[name][index]) for name in ("xs", "ys", "xq", "yq"))
    for index in range(len(ARRAYS["xs"]))
]


class Net(nn.Module):
    """The shared network."""

    def __init__(self):
        super().__init__()
        count = sum(name[0] == "w" for name in ARRAYS)
        self.layers = nn.ModuleList()
        for index in range(count):
            w, b = ARRAYS[f"w{index}"], ARRAYS[f"b{index}"]
            layer = nn.Linear(*w.shape).double()
            layer.weight.data, layer.bias.data = torch.tensor(w.T.copy()), torch.tensor(b)
            self.layers.append(layer)

    def features(self, x):
        """What the head is given."""
        for layer in list(self.layers)[:-1]:
            x = torch.tanh(layer(x))
        return x

    def forward(self, x):
        """All layers."""
        return self.layers[-1](self.features(x))


def named(grads, prefix="") -> dict:
    """Gradients of weights and biases in turn, under the names of the arrays."""
    kinds = ("w", "b")
    return {
        f"{prefix}{kinds[i % 2]}{i // 2}": (g.T if g.ndim == 2 else g).detach().numpy()
        for i, g in enumerate(grads)
    }


def mean(task_loss, parameters) -> list:
    """The gradient of the mean loss over the tasks."""
    total = sum(task_loss(*task) for task in TASKS) / len(TASKS)
    return list(torch.autograd.grad(total, parameters))


def torchopt_maml() -> dict:
    """Differentiable gradient descent."""
    import torchopt

    net = Net()
    inner = torchopt.MetaSGD(net, lr=LR)
    parameters = list(net.parameters())
    start, start_opt = (torchopt.extract_state_dict(x, by="reference") for x in (net, inner))

    def task_loss(xs, ys, xq, yq):
        for _ in range(STEPS):
            inner.step(F.mse_loss(net(xs), ys))
        loss = F.mse_loss(net(xq), yq)
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(inner, start_opt)
        return loss

    return named(mean(task_loss, parameters))


def torchopt_imaml() -> dict:
    """Its module of implicit gradients, with conjugate gradients."""
    import torchopt

    solver = torchopt.linear_solve.solve_cg(maxiter=2000, atol=0.0, rtol=1e-13)

    class Inner(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solver):
        def __init__(self, meta):
            super().__init__()
            self.meta = meta
            self.net = torchopt.module_clone(meta, by="deepcopy", detach_buffers=True)

        def forward(self, x):
            return self.net(x)

        def objective(self, x, y):
            pairs = zip(self.net.parameters(), self.meta.parameters(), strict=True)
            distance = sum(((p - q) ** 2).sum() for p, q in pairs)
            return F.mse_loss(self(x), y) + 0.5 * ARGS.settings["penalty"] * distance

        def solve(self, x, y):
            parameters = tuple(self.net.parameters())
            descent = torch.optim.SGD(parameters, lr=LR)
            with torch.enable_grad():
                for _ in range(ARGS.settings["solve_steps"]):
                    descent.zero_grad()
                    self.objective(x, y).backward(inputs=parameters)
                    descent.step()
            return self

    net = Net()

    def task_loss(xs, ys, xq, yq):
        return F.mse_loss(Inner(net).solve(xs, ys)(xq), yq)

    return named(mean(task_loss, list(net.parameters())))


def higher_maml() -> dict:
    """A functional copy, differentiated through."""
    import higher

    net = Net()
    descent = torch.optim.SGD(net.parameters(), lr=LR)

    def task_loss(xs, ys, xq, yq):
        with higher.innerloop_ctx(net, descent, copy_initial_weights=False) as (copy, opt):
            for _ in range(STEPS):
                opt.step(F.mse_loss(copy(xs), ys))
            return F.mse_loss(copy(xq), yq)

    return named(mean(task_loss, list(net.parameters())))


def higher_first_order() -> dict:
    """The query gradient at the adapted copy, which remembers nothing."""
    import higher

    net = Net()
    descent, grads = torch.optim.SGD(net.parameters(), lr=LR), []
    for xs, ys, xq, yq in TASKS:
        with higher.innerloop_ctx(net, descent, track_higher_grads=False) as (copy, opt):
            for _ in range(STEPS):
                opt.step(F.mse_loss(copy(xs), ys))
            loss = F.mse_loss(copy(xq), yq)
            grads.append(torch.autograd.grad(loss, list(copy.parameters())))
    return named([torch.stack(g).mean(0) for g in zip(*grads, strict=True)])


def higher_meta_sgd() -> dict:
    """Rates as overrides of groups of one tensor each."""
    import higher

    net = Net()
    parameters = list(net.parameters())
    rates = rate_tensors()
    descent = torch.optim.SGD([{"params": [p]} for p in parameters], lr=LR)

    def task_loss(xs, ys, xq, yq):
        with higher.innerloop_ctx(
            net, descent, copy_initial_weights=False, override={"lr": rates}
        ) as (copy, opt):
            for _ in range(STEPS):
                opt.step(F.mse_loss(copy(xs), ys))
            return F.mse_loss(copy(xq), yq)

    grads = mean(task_loss, [*parameters, *rates])
    return named(grads[: len(parameters)]) | named(grads[len(parameters) :], "rate_")


def rate_tensors() -> list:
    """The rate of every entry, in the order of the parameters."""
    names = sorted((k for k in ARRAYS if k.startswith("rate_")), key=lambda k: (k[6], k[5] == "b"))
    return [nn.Parameter(torch.tensor(np.ascontiguousarray(ARRAYS[k].T))) for k in names]


def learn2learn_algorithms():
    """Its pure-Python algorithms, without the package's compiled parts."""
    for name in ("learn2learn", "learn2learn.algorithms"):
        package = types.ModuleType(name)
        package.__path__ = [f"{ARGS.learn2learn}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    from learn2learn.algorithms.maml import MAML
    from learn2learn.algorithms.meta_sgd import MetaSGD

    return MAML, MetaSGD


def learn2learn_maml(*, first_order=False) -> dict:
    """Clone and adapt."""
    net = Net()
    model = learn2learn_algorithms()[0](net, lr=LR, first_order=first_order)

    def task_loss(xs, ys, xq, yq):
        learner = model.clone()
        for _ in range(STEPS):
            learner.adapt(F.mse_loss(learner(xs), ys))
        return F.mse_loss(learner(xq), yq)

    return named(mean(task_loss, list(net.parameters())))


def learn2learn_anil() -> dict:
    """Its recipe: MAML of the head on features that are not cloned."""
    net = Net()
    head = learn2learn_algorithms()[0](net.layers[-1], lr=LR)

    def task_loss(xs, ys, xq, yq):
        learner = head.clone()
        for _ in range(STEPS):
            learner.adapt(F.mse_loss(learner(net.features(xs)), ys))
        return F.mse_loss(learner(net.features(xq)), yq)

    return named(mean(task_loss, list(net.parameters())))


def learn2learn_meta_sgd() -> dict:
    """Its class, with the shared rates."""
    net, rates = Net(), nn.ParameterList(rate_tensors())
    model = learn2learn_algorithms()[1](net, lr=LR, lrs=rates)

    def task_loss(xs, ys, xq, yq):
        learner = model.clone()
        for _ in range(STEPS):
            learner.adapt(F.mse_loss(learner(xs), ys))
        return F.mse_loss(learner(xq), yq)

    parameters = list(net.parameters())
    grads = mean(task_loss, [*parameters, *rates])
    return named(grads[: len(parameters)]) | named(grads[len(parameters) :], "rate_")


def main() -> None:
    """Writes everything."""
    torch.set_num_threads(1)
    found = {
        "MAML by torchopt": torchopt_maml,
        "iMAML by torchopt": torchopt_imaml,
        "MAML by higher": higher_maml,
        "first-order MAML by higher": higher_first_order,
        "Meta-SGD by higher": higher_meta_sgd,
    }
    if ARGS.learn2learn is not None:
        found |= {
            "MAML by learn2learn": learn2learn_maml,
            "first-order MAML by learn2learn": lambda: learn2learn_maml(first_order=True),
            "ANIL by learn2learn": learn2learn_anil,
            "Meta-SGD by learn2learn": learn2learn_meta_sgd,
        }
    for name, function in found.items():
        np.savez(f"{ARGS.folder}/{name}.npz", **function())
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchopt", "higher")}
    with open(f"{ARGS.folder}/versions.json", "w") as file:
        json.dump(versions, file)


if __name__ == "__main__":
    main()
