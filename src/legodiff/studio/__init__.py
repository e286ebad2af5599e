"""A web page and a JSON API to draw with one model, on this machine.

``requests`` says what may be asked, ``drawing`` does it, ``desk`` one at a time, ``shelf`` keeps
the pictures, and ``html`` shows them. ``api`` and ``page`` are the two ways to ask: ``page`` has a
tab each in ``generate``, ``wide``, ``inside``, ``training`` and ``gallery``, which share ``parts``.
``server`` puts both on one port. Only ``api``, ``server`` and the tabs need the extra ``studio``.
"""
