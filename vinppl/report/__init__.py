"""A run as one page for people: what was learned, how, and what of it may not be trusted.

    write_report("runs/pendulum")  # runs/pendulum/report.html

blocks       what a page is made of: sections of text, tables, figures and equations
numbers      numbers and intervals as text
markup       equations as HTML
figures      figures as images inside the page, and those that only the page has
priors       priors as the model states them, found by tracing it
material     what a run folder holds
data, model, inference, posterior, forecast, growth, calibration, provenance
             the sections, in this order
page         the whole page
"""

from vinppl.report.page import build_page, write_report

__all__ = ["build_page", "write_report"]
