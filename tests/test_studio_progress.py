from legodiff.studio import progress
from legodiff.studio.progress import Progress, Report


def test_time_left_follows_from_what_is_done(monkeypatch):
    told, clock = [], [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    report = Report(told.append, count=4)
    report.show("first.png", (16, 32))
    clock[0] = 3.0
    report(1.0)  # which shows the same picture
    shown = ("first.png", (16, 32))
    assert told == [Progress(0.0, None, *shown), Progress(0.25, 9.0, *shown)]
