"""Which job goes when: lines wait for their own jobs alone, and for one that several ask for just once."""

import pytest

from weit.compare.lines import Book, Job, keep, read


def job(name, work=1.0, **arguments):
    return Job(name, print, arguments, work=work)


def asks(*groups):
    """A line that asks for each group of jobs in turn, and returns all their results."""
    found = []
    for group in groups:
        found += yield list(group)
    return found


def next_jobs(book):
    """Those that would be computed, in that order."""
    return [job.name for _, job in reversed(book.waiting)]


def test_a_line_goes_on_while_another_waits(tmp_path):
    book = Book(tmp_path, [asks([job("bank")], [job("start")]), asks([job("trial")], [job("cell")])])
    assert book.advance()
    assert next_jobs(book) == ["bank", "trial"]
    (trial, bank) = (each for _, each in book.waiting)
    book.waiting.clear()
    book.finish(trial, 1)
    assert book.advance()
    assert next_jobs(book) == ["cell"]
    book.finish(bank, 2)
    assert book.advance()
    assert next_jobs(book) == ["start", "cell"]
    for _, each in book.waiting:
        book.finish(each, each.name)
    assert not book.advance()
    assert book.returned == [[2, "start"], [1, "cell"]]


def test_earlier_lines_go_first_and_in_a_line_long_jobs(tmp_path):
    book = Book(tmp_path, [asks([job("short", 1.0), job("long", 2.0)]), asks([job("longest", 3.0)])])
    book.advance()
    assert next_jobs(book) == ["long", "short", "longest"]


def test_what_several_lines_ask_for_is_computed_once(tmp_path):
    book = Book(tmp_path, [asks([job("bank")]), asks([job("bank"), job("bank")])])
    book.advance()
    assert next_jobs(book) == ["bank"]
    book.finish(book.waiting.pop()[1], 5)
    assert not book.advance()
    assert book.returned == [[5], [5, 5]]


def test_a_line_that_asks_for_nothing_is_at_its_end_at_once(tmp_path):
    book = Book(tmp_path, [asks(), asks([])])
    assert not book.advance()
    assert book.returned == [[], []]


def test_the_work_that_is_done_is_counted(tmp_path):
    book = Book(tmp_path, [asks([job("a", 2.0), job("b", 6.0)])])
    book.advance()
    (_, a), (_, b) = book.waiting
    assert book.work == (0, 8)
    book.note(b, 0.5)
    book.finish(a, None)
    assert book.work == (5, 8)


def test_what_is_on_disk_is_not_computed_again(tmp_path):
    assert keep(tmp_path, job("deep/a", value=(1, 2)), {"pair": (3, 4)}) == {"pair": [3, 4]}
    assert read(tmp_path, job("deep/a", value=[1, 2])) == {"pair": [3, 4]}
    assert read(tmp_path, job("deep/a", value=[1, 3])) is None
    book = Book(tmp_path, [asks([job("deep/a", value=[1, 2])], [job("b")])])
    book.advance()
    assert next_jobs(book) == ["b"]


def test_what_a_line_raises_is_raised(tmp_path):
    def refuses():
        yield []
        raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        Book(tmp_path, [refuses()]).advance()
