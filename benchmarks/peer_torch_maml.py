"""Times one second-order MAML meta-step of the PyTorch peers: their side of `maml.py`.

    python3 -m venv peer
    peer/bin/pip install torch==2.13.0 torchopt==0.7.3 higher==0.2.1

learn2learn 0.2.0 has compiled parts that do not build on Python 3.11; `--learn2learn FOLDER` takes
its unpacked source, of which only the pure-Python `algorithms/maml.py` is used.

Every library trains the same network from the same numbers, written by `maml.py` to an npz file: a
meta-step is the gradient of the mean query loss over tasks through `steps` steps of gradient
descent, and an Adam step on the initial weights.
"""

import argparse
import copy
import importlib.metadata
import sys
import time
import types
from collections import OrderedDict

import _measure
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

arguments = argparse.ArgumentParser()
arguments.add_argument("--learn2learn", default=None)
ARGS = arguments.parse_args()


class Net(nn.Module):
    """The network of a problem, its weights from the shared file."""

    def __init__(self, kind: str, arrays):
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList()
        count = sum(name.startswith("w") for name in arrays)
        for index in range(count):
            w, b = arrays[f"w{index}"], arrays[f"b{index}"]
            if w.ndim == 4:  # [3, 3, in, out] there, [out, in, 3, 3] here.
                layer = nn.Conv2d(w.shape[2], w.shape[3], 3, padding=1)
                w = w.transpose(3, 2, 0, 1)
            else:
                layer = nn.Linear(*w.shape)
                w = w.T
            layer.weight.data = torch.tensor(np.ascontiguousarray(w))
            layer.bias.data = torch.tensor(b)
            self.layers.append(layer)

    def forward(self, x):
        """Sinusoids: [n, 1] to [n, 1]. Images: [n, 1, h, w] to logits."""
        for layer in list(self.layers)[:-1]:
            x = layer(x)
            if self.kind == "images":
                x = F.relu(F.max_pool2d(x, 2))
            else:
                x = F.relu(x)
        return self.layers[-1](x.flatten(1))


def loss_of(kind, outputs, targets):
    """Squared error of sinusoids, cross-entropy of images."""
    return (
        F.mse_loss(outputs, targets) if kind == "sinusoids" else F.cross_entropy(outputs, targets)
    )


def with_torchopt(net, tasks, s):
    """TorchOpt's differentiable SGD with its state extracted and recovered for each task."""
    import torchopt

    inner = torchopt.MetaSGD(net, lr=s["inner_lr"])
    outer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step():
        outer.zero_grad()
        start = torchopt.extract_state_dict(net, by="reference")
        start_opt = torchopt.extract_state_dict(inner, by="reference")
        total = 0.0
        for xs, ys, xq, yq in tasks:
            for _ in range(s["steps"]):
                inner.step(loss_of(net.kind, net(xs), ys))
            total = total + loss_of(net.kind, net(xq), yq) / len(tasks)
            torchopt.recover_state_dict(net, start)
            torchopt.recover_state_dict(inner, start_opt)
        total.backward()
        outer.step()
        return float(total.detach())

    return step


def with_higher(net, tasks, s):
    """higher's functional copy of the network and optimizer."""
    import higher

    outer = torch.optim.Adam(net.parameters(), lr=1e-3)
    inner = torch.optim.SGD(net.parameters(), lr=s["inner_lr"])

    def step():
        outer.zero_grad()
        total = 0.0
        for xs, ys, xq, yq in tasks:
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fnet, opt):
                for _ in range(s["steps"]):
                    opt.step(loss_of(net.kind, fnet(xs), ys))
                loss = loss_of(net.kind, fnet(xq), yq) / len(tasks)
                loss.backward()
            total += float(loss.detach())
        outer.step()
        return total

    return step


def with_learn2learn(net, tasks, s):
    """learn2learn's clone-and-adapt."""
    for name in ("learn2learn", "learn2learn.algorithms"):
        package = types.ModuleType(name)
        package.__path__ = [f"{ARGS.learn2learn}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    from learn2learn.algorithms.maml import MAML

    model = MAML(net, lr=s["inner_lr"], first_order=False)
    outer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step():
        outer.zero_grad()
        total = 0.0
        for xs, ys, xq, yq in tasks:
            learner = model.clone()
            for _ in range(s["steps"]):
                learner.adapt(loss_of(net.kind, learner(xs), ys))
            loss = loss_of(net.kind, learner(xq), yq) / len(tasks)
            loss.backward()
            total += float(loss.detach())
        outer.step()
        return total

    return step


def with_functorch(net, tasks, s):
    """No library: torch.func, with tasks vectorised where the network allows it."""
    from torch.func import functional_call, grad, vmap

    params = OrderedDict(
        (k, v.detach().clone().requires_grad_()) for k, v in net.named_parameters()
    )
    outer = torch.optim.Adam(list(params.values()), lr=1e-3)
    stacked = [torch.stack(x) for x in zip(*tasks, strict=True)]

    def inner_loss(p, x, y):
        return loss_of(net.kind, functional_call(net, p, (x,)), y)

    def task_loss(params, xs, ys, xq, yq):
        p = params
        for _ in range(s["steps"]):
            g = grad(inner_loss)(p, xs, ys)
            p = OrderedDict((k, p[k] - s["inner_lr"] * g[k]) for k in p)
        return inner_loss(p, xq, yq)

    def step():
        outer.zero_grad()
        total = vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(params, *stacked).mean()
        total.backward()
        outer.step()
        return float(total.detach())

    return step


LIBRARIES = {
    "torchopt": with_torchopt,
    "higher": with_higher,
    "learn2learn": with_learn2learn,
    "torch.func": with_functorch,
}


def build(settings: dict):
    """A meta-step of one library, and the loss of the first one with its gradient's norm."""
    torch.set_num_threads(settings["threads"])
    arrays = dict(np.load(settings["file"]))
    net = Net(settings["problem"], arrays)
    kinds = ("xs", "ys", "xq", "yq")

    def tensor(name, index):
        x = arrays[name][index]
        if x.ndim == 4:
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return torch.tensor(x.astype(np.int64) if x.dtype.kind == "i" else x)

    tasks = [tuple(tensor(n, i) for n in kinds) for i in range(len(arrays["xs"]))]
    make = LIBRARIES[settings["library"]]
    start = time.perf_counter()
    net = copy.deepcopy(net)
    step = make(net, tasks, settings)
    first_loss = step()
    version = (
        importlib.metadata.version(settings["library"])
        if settings["library"] in ("torchopt", "higher")
        else torch.__version__
    )
    return step, {
        "library": settings["library"],
        "problem": settings["problem"],
        "version": version,
        "first_loss": first_loss,
        "compile_s": round(time.perf_counter() - start, 2),
        "inner_steps": len(tasks) * settings["steps"],
    }


if __name__ == "__main__":
    _measure.serve(build)
