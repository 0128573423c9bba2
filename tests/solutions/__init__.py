"""Solutions of the notebooks' exercises, a module for each notebook.

``given(model)`` holds what the notebook has computed by then; each entry of ``SOLUTIONS`` has the
right answer, and two typical wrong ones with words of the hint that they get. Answers are functions
of what is given, as a student would compute them.
"""
