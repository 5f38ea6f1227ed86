"""Equal shares of time and of space."""

from headway.serving.scheduling.fair_share import FairClock, SharedBuffer


def test_work_starts_when_its_callers_earlier_work_would_end():
    clock = FairClock()
    assert [clock.start("much", 9) for _ in range(3)] == [0, 9, 18]
    assert [clock.start("little", 2), clock.start("little", 2)] == [0, 2]
    clock.advance(9)
    assert [clock.start("little", 2), clock.start("much", 1), clock.start("new", 1)] == [9, 27, 9]


def test_a_caller_gets_as_much_space_as_it_leaves_free():
    buffer = SharedBuffer(12)
    for caller, most in (("one", 6), ("two", 3), ("three", 1)):
        assert buffer.accepts(caller, most) and not buffer.accepts(caller, most + 1)
        buffer.add(caller, most)
    buffer.remove("one", 6)
    assert buffer.used == 4 and buffer.accepts("one", 4) and not buffer.accepts("one", 5)
