"""Text and tables to the parts of a tree, and back; users call the methods of ``Tree``.

Each reader checks what it is given, names the culprit in a ``TreeError`` and returns
``TreeParts``; each writer takes them. ``arrange.py`` brings arcs in any order into level order,
``naming.py`` says how labels are shown in messages and which are no labels.
"""
