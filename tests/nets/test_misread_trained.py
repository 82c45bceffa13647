"""What is often written about converting a trained network, and what is true."""

import ast
import itertools

import pytest

# The shape of the slip, in words of our own: two statements in one line, three times.
LINES = [
    ("mean = preds.mean(dim=1)", "plot(mean)"),
    ("weight = 0.01", "optimiser = make(net)"),
    ("for step in steps:", "    loss(step)", "    move(step)"),
]


@pytest.mark.misreading("S3.12")
@pytest.mark.parametrize("lines", LINES, ids=["call", "number", "loop"])
def test_code_without_its_line_breaks_does_not_parse(lines):
    """Source: Python's own grammar. With any one of the breaks after a whole statement lost it is no program."""
    assert ast.parse("\n".join(lines))
    body = [i for i, line in enumerate(lines) if not line.endswith(":")][:-1]
    for lost in body:
        breaks = ["" if i == lost else "\n" for i in range(len(lines))]
        text = "".join(itertools.chain(*zip(lines, breaks, strict=True)))
        with pytest.raises(SyntaxError):
            ast.parse(text)
    with pytest.raises(SyntaxError):
        ast.parse(" ".join(line.strip() for line in lines))


@pytest.mark.misreading("S3.12")
def test_the_loop_in_its_right_form_trains():
    """Source: the mended form of the loop does what it was meant to: the loss falls."""
    source = "\n".join(
        [
            "import torch",
            "net = torch.nn.Linear(1, 1)",
            "optimiser = torch.optim.Adam(net.parameters(), lr=0.1)",
            "x = torch.linspace(-1, 1, 20).unsqueeze(1)",
            "losses = []",
            "for step in range(100):",
            "    optimiser.zero_grad()",
            "    loss = ((net(x) - 3 * x) ** 2).mean()",
            "    loss.backward()",
            "    optimiser.step()",
            "    losses.append(loss.item())",
        ]
    )
    names = {}
    exec(compile(ast.parse(source), "loop", "exec"), names)
    assert names["losses"][-1] < 0.01 * names["losses"][0]
    with pytest.raises(SyntaxError):
        ast.parse(source.replace("lr=0.1)\n", "lr=0.1)"))
