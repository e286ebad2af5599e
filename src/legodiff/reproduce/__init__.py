"""The paper's tables and figures: what is trained, how it is judged, and the page that comes of it.

``experiments`` says all of it as data, at two scales: the paper's own, which needs its data and
GPUs, and a small one on digits or crops of photographs, which runs on a CPU. Both take one path.
"""
