"""The ranks that a factorization offers, and errors that never rise with them."""

from roundwise.numerics.ranks import never_rising, ranks, some_ranks


def test_ranks_are_multiples_or_the_largest():
    assert ranks(20, 8) == [8, 16]
    assert ranks(5, 8) == [5]
    assert ranks(3, 1) == [1, 2, 3]


def test_some_ranks_are_the_first_the_last_and_others_evenly_between():
    assert some_ranks(list(range(1, 10)), 3) == [1, 5, 9]
    assert some_ranks([8, 16], 3) == [8, 16]
    many = some_ranks(list(range(8, 800, 8)), 12)
    assert (len(set(many)), many[0], many[-1]) == (12, 8, 792)


def test_an_error_is_at_least_that_of_every_larger_size():
    sizes = [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert never_rising(sizes, [5.0, 3.0, 2.0, 2.5]) == [5.0, 3.0, 2.5, 2.5]
