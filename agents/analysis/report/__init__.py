"""Reports: what a run learned and remembers, and how runs compare, as tables and as pages that work offline.

records.py      what a run's directory says
statistics.py   intervals over seeds, probability of improvement
groups.py       runs that differ in their seed alone
data.py         numbers as a page carries them; an episode to step through
pictures.py     observations that are pictures
page.py         the pages; page.html, page.css and page.js are what they are made of
"""

from agents.analysis.report.groups import Group, Scored, grouped, improvements, print_whole, table
from agents.analysis.report.page import comparison_page, run_page, write_once
from agents.analysis.report.records import Record

__all__ = [
    "Group",
    "Record",
    "Scored",
    "comparison_page",
    "grouped",
    "improvements",
    "print_whole",
    "run_page",
    "table",
    "write_once",
]
