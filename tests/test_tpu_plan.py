"""experiments/tpu_plan.py: which changes of the code make finished plans out of date."""

import pytest

from experiments import tpu_plan


def test_every_module_that_plans_depend_on_exists():
    assert len(tpu_plan.code()) == 16


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ('"""Other words."""\nx = 1  # why\n', True),
        ('"""A module."""\nx = 1\n\n\ndef f():\n    """Words."""\n    return 2\n', False),
        ('"""A module."""\nx = 2\n', False),
    ],
)
def test_only_code_counts(changed, same):
    before = tpu_plan.without_prose('"""A module."""\nx = 1\n')
    assert (tpu_plan.without_prose(changed) == before) is same


@pytest.mark.parametrize(("error", "same"), [('BadInput("other words")', True), ('OSError("words")', False)])
def test_the_text_of_an_error_does_not_count(error, same):
    before = tpu_plan.without_prose('raise BadInput(f"words {x}") from None\n')
    assert (tpu_plan.without_prose(f"raise {error} from None\n") == before) is same
