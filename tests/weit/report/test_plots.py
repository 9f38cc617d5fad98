import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.weit.report.example import example
from weit.report.plots import plot_steps, plot_work


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figures that are saved."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: figures.append(self) or save(self, *args, **kwargs)
    )
    return figures


def lines(axis):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def test_curves_by_step(tmp_path, drawn):
    plot_steps(example(), tmp_path / "plot.png")
    axes = [axis for axis in drawn[0].axes if axis.get_visible()]
    assert [axis.get_title().split()[0] for axis in axes] == ["64x3", "32x6", "96x8"]
    found = lines(axes[0])
    assert set(found) == {"scratch", "weight selection", "WeiT"}
    steps, accuracies = found["WeiT"]
    assert steps == [0, 20, 40]
    assert accuracies == pytest.approx([50, 85, 91])


def test_curves_by_work_start_after_the_preparation(tmp_path, drawn):
    plot_work(example(), tmp_path / "plot.png")
    found = lines(drawn[0].axes[0])
    assert set(found) == {"scratch", "scratch, same total work", "weight selection", "WeiT"}
    assert found["WeiT"][0] == [45, 65, 85]
    assert found["scratch"][0] == [0, 20, 40]


def test_the_file_is_a_picture_with_curves_in_it(tmp_path):
    plot_steps(example(), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        assert len(set(picture.convert("RGB").getdata())) > 100
