"""Reports: what a run learned and remembers, and how runs compare, as tables and as pages that work offline.

history.py      what a run's directory says
groups.py       runs that differ in their seed alone
data.py         numbers as a page carries them; an episode to step through
acting.py       what recorded episodes show: values, actions, the memory
findings.py     what analyses have left in the run's directory
blocks.py       what pages are made of; *.html, *.css and *.js are what they look like, uplot.* (MIT) draws charts
page.py         the page of a run
comparison.py   the page of several runs
"""
