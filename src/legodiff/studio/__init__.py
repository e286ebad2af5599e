"""A web page and a JSON API to draw with one model, on this machine.

``desk`` runs drawings one at a time, ``requests`` says what may be asked, ``drawing`` does it;
``page`` and ``api`` are the two ways to ask. Only those two know of Gradio and FastAPI.
"""
