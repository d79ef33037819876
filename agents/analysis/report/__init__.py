"""Reports: what a run learned and remembers, and how runs compare, as tables and as pages that work offline.

history.py      what a run's directory says
groups.py       runs that differ in their seed alone
data.py         numbers as a page carries them; an episode to step through
page.py         the pages; *.html, page.css and page.js are what they are made of
"""
