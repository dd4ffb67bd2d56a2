from ipvsproxy.plan.planning_order import LATEST, REMEMBERED, UNITS_A_SECOND, PlanningOrder


def turns(size, **waiting):
    made = PlanningOrder()
    made.size = size
    for name, own in waiting.items():
        made.add(name, own, 0.0)
    return made


def order(made):
    found = []
    while made:
        found.append(made.take())
    return found


def test_little_work_comes_first():
    made = turns(1, big=400_000, small=30, middle=5000)
    assert order(made) == [["small"], ["middle"], ["big"]]


def test_slices_are_of_a_size_and_one_alone_may_be_larger():
    made = turns(100, a=40, b=50, c=60, d=500, e=10)
    assert order(made) == [["e", "a", "b"], ["c"], ["d"]]


def test_what_changes_all_the_time_waits_for_what_rarely_does():
    made = turns(1)
    for moment in range(100):
        made.add("restless", 20_000, float(moment))
        made.take()
    made.add("restless", 20_000, 100.0)
    made.add("calm", 20_000, 100.0)
    assert order(made) == [["calm"], ["restless"]]
    made.add("restless", 20_000, 2000.0)
    made.add("calm", 20_001, 2000.0)
    assert order(made) == [["restless"], ["calm"]]


def test_no_one_waits_for_ever():
    """However much it is, and whatever comes later."""
    made = turns(1, huge=1000 * UNITS_A_SECOND)
    rounds = 0
    for rounds in range(10_000):
        made.add(f"s{rounds}", 1, rounds * 0.01)
        made.add("huge", 1, rounds * 0.01)
        if made.take() == ["huge"]:
            break
    assert rounds * 0.01 <= LATEST + 0.01


def test_a_service_waits_once():
    made = turns(1000, a=10)
    made.add("a", 10, 1.0)
    assert len(made) == 1
    assert order(made) == [["a"]]


def test_what_was_long_ago_takes_no_memory():
    made = PlanningOrder()
    for number in range(5 * REMEMBERED):
        made.add(f"s{number}", 1, number * 1.0)
        made.take()
    assert len(made._spent) <= 2 * REMEMBERED
