"""The ledger of stft2d: consistent with the paper, and counted within the stated deviations."""

from __future__ import annotations

from matplotlib.figure import Figure

from common.reporting.ledger import Ledger
from papers.stft2d import figures


def test_rows_of_table2_name_what_they_train(ledger: Ledger) -> None:
    for row in ledger.tables[1].rows:
        assert set(row.recipes) == {"cifar10", "cifar100"}
        for recipe in row.recipes.values():
            text = " ".join(recipe.overrides)
            if row.name.startswith("Ours"):
                b, f = (part.partition("=")[2] for part in row.name.strip(")").split("(")[1].split(", "))
                assert text == f"--model.network.b {b} --model.network.f {f}"
                assert row.paper["features"] == f
            else:
                assert "--model.method" in text
    ours = [row for row in ledger.tables[1].rows if row.name.startswith("Ours")]
    accuracies = [(float(row.paper["cifar10"]), float(row.paper["cifar100"])) for row in ours]
    assert accuracies == sorted(accuracies)  # Section 4: both variants improve the results


def test_counts_beside_the_paper(ledger: Ledger) -> None:
    column = ledger.tables[1].columns[0]
    worst = {}
    for row in ledger.tables[1].rows:
        counted = ledger.complexity(next(iter(row.networks.values()))).params
        published = column.value(row.paper["params"])
        assert published is not None
        worst[row.id] = abs(counted / published - 1)
    assert max(worst.values()) < 0.055
    assert sum(deviation < 0.016 for deviation in worst.values()) == 8


def test_layers_of_table1(ledger: Ledger) -> None:
    sizes = {"c": 64, "f": 128, "n": 3}
    for row in ledger.tables[0].rows:
        formula = row.paper["formula"].replace("·", "*").replace("²", "**2")
        assert ledger.complexity(row.networks["ours"]).params == eval(formula, sizes)


def test_figure2_is_drawn() -> None:
    figure = figures.figure2()
    assert isinstance(figure, Figure)
    assert len([axes for axes in figure.axes if axes.images]) == 18
