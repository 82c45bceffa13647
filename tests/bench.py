"""Ratios of the book's own work against torchbnn and the deterministic net, all in one run.

Process CPU time on one thread; rounds are interleaved and a ratio is the median of the ratios
within a round, because absolute times move with whatever else the machine does.

W1: net 1-1000-1 (ReLU), 500 points, full batch; then 10,000 draws on 300 points.
W2: net 784-400-400-10, batches of 128; then 100 draws on 1,000 inputs.
W3: convolutional net on the 8 x 8 digits, batches of 128; then 100 draws on 500 images.
Answer: what torchbnn's recipe takes on W1, 2,000 steps and 10,000 draws, against Laplace on a small net, which is
calibrated: the oracle knows the curve and the noise.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torchbnn
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import HalfNormal, Normal

from bnnlib.data import Standardized, quintic
from bnnlib.metrics import coverage, nll
from bnnlib.nets import Categorical, Gaussian, Model, Posterior, from_torchbnn, laplace, mean_field

# Training step: against the deterministic net, against torchbnn.
STEP_GOALS = {"W1": (1.10, 0.55), "W2": (1.60, 0.65), "W3": (1.15, 0.75)}

Work = Callable[[], object]
Layer = Callable[..., nn.Module]
bayes_linear: Layer = partial(torchbnn.BayesLinear, 0, 0.1)
bayes_conv: Layer = partial(torchbnn.BayesConv2d, 0, 0.1)


def cpu_seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def rounds(works: dict[str, Work], count: int) -> dict[str, list[float]]:
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
    print(f"{work:8s}{what:52s}{value:9.3f}   {goal}", flush=True)


def deterministic(net: nn.Module, x: Tensor, y: Tensor, loss: nn.Module, steps: int) -> Work:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def work() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()

    return work


def with_torchbnn(net: nn.Module, x: Tensor, y: Tensor, loss: nn.Module, steps: int) -> Work:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    kl = torchbnn.BKLLoss(reduction="mean", last_layer_only=False)

    def work() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (loss(net(x), y) + 0.01 * kl(net)).backward()
            optimizer.step()

    return work


def loop(net: nn.Module, x: Tensor, draws: int) -> Work:
    """Draws into one result. Kept in a list they break up the heap, which by chance costs ten times as much."""

    def work() -> Tensor:
        with torch.no_grad():
            first = net(x)
            out = first.new_empty((draws, *first.shape))
            for s in range(draws):
                out[s] = net(x)
            return out

    return work


def steps(name: str, nets: dict[str, nn.Module], model: Model, x: Tensor, y: Tensor, count: int, each: int) -> None:
    """Ratios of a training step. A fit takes `each` steps, so that what it does once before them is a small part."""
    loss = nn.MSELoss() if y.is_floating_point() else nn.CrossEntropyLoss()
    works: dict[str, Work] = {
        "det": deterministic(nets["det"], x, y, loss, each),
        "torchbnn": with_torchbnn(nets["torchbnn"], x, y, loss, each),
        "bnnlib": lambda: mean_field(model, (x, y), steps=each, lr=1e-3, progress=False),
    }
    times = rounds(works, count)
    det, other = STEP_GOALS[name]
    row(name, "training step / deterministic", ratio(times, "bnnlib", "det"), f"goal {det:.2f}")
    row(name, "training step / torchbnn", ratio(times, "bnnlib", "torchbnn"), f"goal {other:.2f}")
    row(name, "torchbnn training step / deterministic", ratio(times, "torchbnn", "det"), "")


def hundred_draws(name: str, what: str, net: nn.Module, x: Tensor, count: int) -> None:
    posterior = from_torchbnn(net, Categorical())
    times = rounds({"torchbnn": loop(net, x, 100), "bnnlib": lambda: posterior.predict(x, draws=100)}, count)
    row(name, f"100 draws on {what} / torchbnn's loop", ratio(times, "bnnlib", "torchbnn"), "goal 1.05")


def w1(count: int) -> None:
    data = quintic(500)

    def net(linear: Layer) -> nn.Module:
        return nn.Sequential(linear(1, 1000), nn.ReLU(), linear(1000, 1))

    nets = {"det": net(nn.Linear), "torchbnn": net(bayes_linear)}
    model = Model(net(nn.Linear), Gaussian(scale=0.5), prior=0.1)
    steps("W1", nets, model, data.x, data.y, count, each=200)

    x = torch.linspace(-2, 2, 300).unsqueeze(-1)
    posterior = from_torchbnn(nets["torchbnn"], Gaussian(scale=0.5))
    times = rounds(
        {
            "det": loop(nets["det"], x, 10_000),
            "torchbnn": loop(nets["torchbnn"], x, 10_000),
            "bnnlib": lambda: posterior.predict(x, draws=10_000),
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

    def net(linear: Layer) -> nn.Module:
        return nn.Sequential(linear(784, 400), nn.ReLU(), linear(400, 400), nn.ReLU(), linear(400, 10))

    nets = {"det": net(nn.Linear), "torchbnn": net(bayes_linear)}
    steps("W2", nets, Model(net(nn.Linear), Categorical()), x, y, count, each=40)
    inputs = torch.rand(1000, 784, generator=generator)
    hundred_draws("W2", "1,000 inputs", nets["torchbnn"], inputs, max(2, count // 4))


def w3(count: int) -> None:
    images, labels = (torch.as_tensor(v) for v in load_digits(return_X_y=True))
    images = (images / 16).float().reshape(-1, 1, 8, 8)

    def net(linear: Layer, conv: Layer) -> nn.Module:
        first = [conv(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        second = [conv(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*first, *second, nn.Flatten(), linear(128, 10))

    nets = {"det": net(nn.Linear, nn.Conv2d), "torchbnn": net(bayes_linear, bayes_conv)}
    model = Model(net(nn.Linear, nn.Conv2d), Categorical())
    steps("W3", nets, model, images[:128], labels[:128], count, each=50)
    hundred_draws("W3", "500 images", nets["torchbnn"], images[-500:], count)


def answer(sets: int = 3) -> None:
    """Time to a calibrated answer: mean and interval on 300 points, then judged on 2,000 new ones."""
    sd, grid = 0.577, torch.linspace(-2, 2, 300).unsqueeze(-1)
    ratios, gaps, covered = [], [], []
    for seed in range(sets):
        source = torch.Generator().manual_seed(seed)
        train = quintic(500, "normal", sd, generator=source)
        test = quintic(2000, "normal", sd, spacing="random", generator=source)
        wide = nn.Sequential(bayes_linear(1, 1000), nn.ReLU(), bayes_linear(1000, 1))
        fit, predict = with_torchbnn(wide, train.x, train.y, nn.MSELoss(), 2000), loop(wide, grid, 10_000)
        small = Model(nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)), Gaussian(scale=HalfNormal(1.0)))
        data = Standardized(train.x, train.y)

        def calibrated(model: Model = small, data: Standardized = data) -> Posterior:
            # Half a nat of log evidence is enough: it moves no interval visibly.
            found = laplace(model, data, burn_in=30, tolerance=0.5, progress=False)
            found.predict(grid).interval(0.95)
            return found

        ratios.append(cpu_seconds(calibrated) / (cpu_seconds(fit) + cpu_seconds(predict)))
        predictive = calibrated().predict(test.x)
        gaps.append(nll(predictive, test.y) + float(Normal(test.curve, sd).log_prob(test.y).mean()))
        covered.append(coverage(predictive, test.y))
    row("Answer", "Laplace, 10 units / torchbnn's recipe", statistics.median(ratios), "goal 0.10")
    row("Answer", f"nats above the oracle, the worst of {sets}", max(gaps), "goal 0.03")
    row("Answer", "coverage of 95 %, the lowest", min(covered), "goal 0.93")
    row("Answer", "coverage of 95 %, the highest", max(covered), "goal 0.97")


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
            [sys.executable, "-c", code.replace("WORK", work)],
            check=True,
            capture_output=True,
            text=True,
        )
        row("W1", what, float(out.stdout), goal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    count = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread, {count} rounds, ratios are medians within a round\n")
    w1(count)
    w2(count)
    w3(count)
    answer()
    imports(count)
    memory()


if __name__ == "__main__":
    main()
