"""Curves of one run: what was recorded, and nothing where nothing was."""

import json

from matplotlib.figure import Figure
from PIL import Image

from weit.report import plot_run

RECORDS = [{"step": 2, "loss": 3.0, "lr": 0.1}, {"step": 4, "loss": 2.0, "lr": 0.2, "validation_accuracy": 0.5}]


def test_every_number_has_its_axis(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self) or save(self, *args, **kwargs)
    )
    path = plot_run(tmp_path)
    found = {axis.get_title(): axis.get_lines()[0].get_xydata().tolist() for axis in drawn[0].axes}
    assert found == {"loss": [[2, 3], [4, 2]], "lr": [[2, 0.1], [4, 0.2]], "validation accuracy": [[4, 0.5]]}
    with Image.open(path) as image:
        assert image.width > image.height


def test_no_records_no_file(tmp_path):
    assert plot_run(tmp_path) is None
    assert not list(tmp_path.iterdir())
