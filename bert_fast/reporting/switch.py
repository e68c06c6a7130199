"""A switch between pictures: groups of radio buttons. Each combination shows one picture. Needs no script."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from bert_fast.reporting.markup import Html, join, tag


class Group(NamedTuple):
    """A question with its answers, as (value, text). The first answer is selected initially."""

    name: str
    question: str
    answers: Sequence[tuple[str, str]]


def switch(name: str, groups: Sequence[Group], view: Callable[..., Html]) -> Html:
    """Radio buttons for the groups with more than one answer, and one `view(*values)` for each combination of answers.

    name: distinguishes this switch from others on the page.
    """
    sets, rules = [], []
    for group in groups:
        if len(group.answers) < 2:
            continue
        buttons = []
        for index, (value, words) in enumerate(group.answers):
            id_ = f"{name}-{group.name}-{index}"
            button = tag("input", type="radio", name=f"{name}-{group.name}", value=value, id=id_, checked=index == 0)
            buttons += [button, tag("label", words, for_=id_)]
        sets.append(tag("fieldset", tag("legend", group.question), tag("div", *buttons, class_="buttons")))
    views = []
    for number, chosen in enumerate(product(*(list(enumerate(group.answers)) for group in groups))):
        values = [value for _, (value, _) in chosen]
        ids = [
            f"{name}-{group.name}-{index}"
            for group, (index, _) in zip(groups, chosen, strict=True)
            if len(group.answers) > 1
        ]
        checked = "".join(f":has(#{id_}:checked)" for id_ in ids)
        if ids:
            rules.append(f"#{name}{checked}>.view-{number}")
        views.append(tag("div", view(*values), class_=f"view view-{number}", data_view=" ".join(values)))
    # A browser without :has() shows all views, one below the other.
    style = f"@supports selector(:has(a)){{#{name}>.view{{display:none}}{','.join(rules)}{{display:block}}}}"
    return tag(
        "div",
        tag("style", Html(style)) if rules else "",
        tag("div", join(sets), class_="switches") if sets else "",
        *views,
        id=name,
        class_="switch",
    )
