"""A web page and a JSON API to draw with one model, on this machine.

``requests`` says what may be asked, and ``elsewhere`` how to ask for the same on a command line.
``drawing`` does it, ``desk`` one at a time, ``progress`` tells how far it is, ``shelf`` keeps the
pictures, and ``html`` shows them. ``api`` and ``page`` are the two ways to ask: ``page`` has a tab
each in ``generate``, ``wide``, ``inside``, ``training`` and ``gallery``, which share ``parts``.
``server`` puts both on one port. Only ``api``, ``server`` and the tabs need the extra ``studio``.
"""
