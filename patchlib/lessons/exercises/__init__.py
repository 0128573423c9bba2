"""The exercises of the notebooks, a module for each.

A module's docstring holds the text and the cell that the notebook prints. An exercise is a
function of the answer and of what the cell gives, registered by its number: it returns nothing
where the answer is right, and else a hint that names the mistake and never the answer.
"""
