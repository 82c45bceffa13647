"""Ratios of the book's own work against torchbnn and the deterministic net, all in one run.

Process CPU time on one thread; rounds are interleaved and a ratio is the median of the ratios
within a round, because absolute times move with whatever else the machine does.

W1: net 1-1000-1 (ReLU), 500 points, full batch; then 10,000 draws on 300 points.
W2: net 784-400-400-10, batches of 128; then 100 draws on 1,000 inputs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torchbnn
from torch import Tensor, nn

from bnnlib.data import quintic
from bnnlib.nets import Categorical, Gaussian, Model, from_torchbnn, mean_field


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def rounds(works: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    for work in works.values():
        work()  # warm up
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(count):
        for name, work in works.items():
            times[name].append(cpu_seconds(work))
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def row(work: str, what: str, value: float, goal: str) -> None:
    print(f"{work:4s}{what:52s}{value:9.3f}   {goal}")


def deterministic(net: nn.Module, x: Tensor, y: Tensor, loss: nn.Module, steps: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def work() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()

    return work


def with_torchbnn(net: nn.Module, x: Tensor, y: Tensor, loss: nn.Module, steps: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    kl = torchbnn.BKLLoss(reduction="mean", last_layer_only=False)

    def work() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (loss(net(x), y) + 0.01 * kl(net)).backward()
            optimizer.step()

    return work


def w1(count: int) -> None:
    data = quintic(500)
    bayesian = nn.Sequential(torchbnn.BayesLinear(0, 0.1, 1, 1000), nn.ReLU(), torchbnn.BayesLinear(0, 0.1, 1000, 1))
    plain = nn.Sequential(nn.Linear(1, 1000), nn.ReLU(), nn.Linear(1000, 1))
    model = Model(nn.Sequential(nn.Linear(1, 1000), nn.ReLU(), nn.Linear(1000, 1)), Gaussian(scale=0.5), prior=0.1)
    pair, steps = (data.x, data.y), 300
    times = rounds(
        {
            "det": deterministic(plain, *pair, nn.MSELoss(), steps),
            "torchbnn": with_torchbnn(bayesian, *pair, nn.MSELoss(), steps),
            "bnnlib": lambda: mean_field(model, pair, steps=steps, lr=1e-3, progress=False),
        },
        count,
    )
    row("W1", "training step / deterministic", ratio(times, "bnnlib", "det"), "goal 1.10")
    row("W1", "training step / torchbnn", ratio(times, "bnnlib", "torchbnn"), "goal 0.55")
    row("W1", "torchbnn training step / deterministic", ratio(times, "torchbnn", "det"), "")

    x = torch.linspace(-2, 2, 300).unsqueeze(-1)
    posterior = from_torchbnn(bayesian, Gaussian(scale=0.5))
    draws = 10_000

    def loop(net: nn.Module) -> Callable[[], Tensor]:
        def work() -> Tensor:
            with torch.no_grad():
                return torch.stack([net(x) for _ in range(draws)])

        return work

    times = rounds(
        {
            "det": loop(plain),
            "torchbnn": loop(bayesian),
            "bnnlib": lambda: posterior.predict(x, draws=draws),
            "closed": lambda: posterior.moments(x),
        },
        max(2, count // 4),
    )
    row("W1", "10,000 draws on 300 points / torchbnn's loop", ratio(times, "bnnlib", "torchbnn"), "goal 0.45")
    row("W1", "10,000 draws on 300 points / deterministic loop", ratio(times, "bnnlib", "det"), "")
    row("W1", "mean and sd in closed form / torchbnn's loop", ratio(times, "closed", "torchbnn"), "goal 0.01")


def w2(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(128, 784, generator=generator)
    y = torch.randint(10, (128,), generator=generator)
    sizes = [(784, 400), (400, 400), (400, 10)]

    def network(layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
        layers = [layer(*s) for s in sizes]
        return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    bayesian = network(lambda i, o: torchbnn.BayesLinear(0, 0.1, i, o))
    plain = network(nn.Linear)
    model, steps = Model(network(nn.Linear), Categorical()), 20
    times = rounds(
        {
            "det": deterministic(plain, x, y, nn.CrossEntropyLoss(), steps),
            "torchbnn": with_torchbnn(bayesian, x, y, nn.CrossEntropyLoss(), steps),
            "bnnlib": lambda: mean_field(model, (x, y), steps=steps, lr=1e-3, progress=False),
        },
        count,
    )
    row("W2", "training step / deterministic", ratio(times, "bnnlib", "det"), "goal 1.60")
    row("W2", "training step / torchbnn", ratio(times, "bnnlib", "torchbnn"), "goal 0.65")
    inputs = torch.rand(1000, 784, generator=generator)
    posterior = from_torchbnn(bayesian, Categorical())

    def loop() -> Tensor:
        with torch.no_grad():
            return torch.stack([bayesian(inputs) for _ in range(100)])

    times = rounds({"torchbnn": loop, "bnnlib": lambda: posterior.predict(inputs, draws=100)}, max(2, count // 4))
    row("W2", "100 draws on 1,000 inputs / torchbnn's loop", ratio(times, "bnnlib", "torchbnn"), "goal 1.05")


def imports(count: int) -> None:
    def seconds(statement: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        return time.perf_counter() - start

    pairs = [(seconds("import bnnlib.nets"), seconds("import torch")) for _ in range(max(3, count // 2))]
    row("", "import bnnlib.nets / import torch", statistics.median(a / b for a, b in pairs), "goal 1.15")


def memory() -> None:
    """Peak resident memory that a prediction adds, read by a process of its own from Linux's high-water mark."""
    code = """
import torch
from torch import nn
from torch.distributions import Independent, Normal
from bnnlib.nets import Gaussian, Model, Posterior
model = Model(nn.Sequential(nn.Linear(1, 1000), nn.ReLU(), nn.Linear(1000, 1)), Gaussian(scale=0.5))
posterior = Posterior(model, Independent(Normal(model.start(), torch.full((model.size,), 0.1)), 1), "bench")
x = torch.linspace(-2, 2, 300).unsqueeze(-1)
posterior.predict(x, draws=10)
def mark(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
open("/proc/self/clear_refs", "w").write("5")
before = mark("VmRSS")
kept = WORK
print((mark("VmHWM") - before) / 1024)
"""
    for work, what, goal in (
        ("posterior.predict(x, draws=10_000)", "peak MiB of 10,000 stored draws (11.4 stored)", "goal 33"),
        ("posterior.moments(x, draws=10_000)", "peak MiB of moments, closed form", ""),
    ):
        out = subprocess.run(
            [sys.executable, "-c", code.replace("WORK", work)], check=True, capture_output=True, text=True
        )
        row("W1", what, float(out.stdout), goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    count = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread, {count} rounds, ratios are medians within a round\n")
    w1(count)
    w2(count)
    imports(count)
    memory()


if __name__ == "__main__":
    main()
