"""A page to look at: what a plan changes, picture by picture and scale by scale.

``session`` holds the work and knows no page; ``page`` is the page, and needs ``stagevar[studio]``.
"""
