"""``python -m weit.report results.json ... page.md``: kept results of comparisons as one page."""

from __future__ import annotations

import sys
from pathlib import Path

from weit.report.results import write_page

_OPENING = """
# Results

What `weit compare` found on small recipes, a line of the overview and a section each; `python -m weit.report` makes this
page from the files linked below. Every start gets its own best learning rate of the same list, chosen on the validation
split with one seed (scratch with the same total work has scratch's); the
scores are of the test split, mean ± standard deviation over seeds. “Ahead” and “behind”: Welch's t-test over the seeds of a
target tells the two apart at 95 %. “Level”: it does not; with two or three seeds that may be so of a difference of many
points, and with one it always is. The choice of the rate and the points of the curves rest
on a quicker measurement than the final scores, “step 0” among them: of Fashion-MNIST 2,000 test images in place of
10,000, whose scores are up to 1.5 points lower. “Seen”: the pre-training ran at this size too. “Scratch's final after”: the
first measured step at which the mean curve is where scratch's ends; “in total work”: the same with all work before step 0
added, in training steps of that target. A step of pre-training on a bank is priced like one of the dense model of its size,
though the paths of its Kron layers may take other numbers of operations ([findings.md](findings.md) has some). What each
rival does is in [rivals.md](rivals.md).
"""

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    *results, page = map(Path, sys.argv[1:])
    try:
        write_page(results, page, _OPENING)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
