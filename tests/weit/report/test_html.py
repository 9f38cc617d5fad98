import base64
import json
import re
from html.parser import HTMLParser

import pytest

from tests.weit.disk import unprivileged
from tests.weit.report.example import example
from weit.report import table, verdicts, write_report


class Page(HTMLParser):
    """Tags and text of a page; every tag that opens must close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts, self._open = [], [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new"
    return write_report(example(), out, notes=["1 < 2 & a note."]), out


def test_the_page_stands_alone(written):
    path, out = written
    page = Page(path.read_text())
    assert len(page.links) == page.tags.count("img") == 2
    for link, name in zip(page.links, ("curves-steps.png", "curves-work.png"), strict=True):
        head, _, content = link.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(content) == (out / name).read_bytes()
    assert "script" not in page.tags


def test_the_page_holds_table_verdicts_settings_and_machine(written):
    page = Page(written[0].read_text())
    texts = " ".join(" ".join(page.texts).split())
    for sentence in [*verdicts(example()), "1 < 2 & a note.", "some <change>", "91.0 ± 0.7", "batch_size", "torch"]:
        assert " ".join(sentence.split()) in texts
    assert page.tags.count("tr") == 1 + 3 * 4


def test_the_best_of_each_target_is_marked(written):
    best = re.findall(r'<td class="own best">([^<]*)</td>', written[0].read_text())
    assert [text.split()[0] for text in best] == ["91.0", "90.0", "90.0", "90.0"]  # two alike on the last


def test_text_and_numbers_lie_beside_it(written):
    _, out = written
    assert table(example()) in (out / "table.txt").read_text()
    results = json.loads((out / "results.json").read_text())
    assert results["rows"][0]["outcomes"]["weit"]["tests"] == [0.905, 0.915]
    assert results["config"]["out"] == "out"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    with unprivileged(), pytest.raises(OSError, match=r"locked|Permission"):
        write_report(example(), tmp_path / "locked")
