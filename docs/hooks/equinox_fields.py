"""What the documentation shows of a class: its constructor, and its docstrings in one order.

An Equinox module without an `__init__` has its fields as constructor arguments, like a data class,
but carries no decorator by which a static reader of the sources could know. This Griffe extension
writes that `__init__` down, so that the documentation shows a signature. Where there is one, its
arguments come before the example and the reference that end the docstring of the class.
"""

import re

import griffe


_NOT_FIELDS = ("AbstractVar", "AbstractClassVar", "ClassVar")


def _is_field(member: griffe.Object | griffe.Alias) -> bool:
    if not member.is_attribute or member.annotation is None:
        return False
    return not any(word in str(member.annotation) for word in _NOT_FIELDS)


def _default(value: str | griffe.Expr | None) -> str | griffe.Expr | None:
    """The default of a field: 1 for `eqx.field(default=1, static=True)`, none without `default`."""
    if not isinstance(value, griffe.ExprCall) or str(value.function).split(".")[-1] != "field":
        return value
    for argument in value.arguments:
        if isinstance(argument, griffe.ExprKeyword) and argument.name == "default":
            return argument.value
    return None


def _own_fields(cls: griffe.Class) -> dict[str, griffe.Attribute]:
    return {name: member for name, member in cls.members.items() if _is_field(member)}


_TAIL = re.compile(r"^(\*\*Example:\*\*|\?\?\? cite )", re.MULTILINE)


def _move_example(cls: griffe.Class) -> None:
    """Moves a class's example and reference to the end of its constructor's docstring."""
    init = cls.members.get("__init__")
    if init is None or init.docstring is None or cls.docstring is None:
        return
    tail = _TAIL.search(cls.docstring.value)
    if tail is not None:
        init.docstring.value += "\n\n" + cls.docstring.value[tail.start() :]
        cls.docstring.value = cls.docstring.value[: tail.start()].rstrip()


class EquinoxFields(griffe.Extension):
    """Adds the implied `__init__` to every class that has annotated fields and no constructor, and
    puts the example and the reference of others after their arguments.
    """

    def on_class(self, *, cls: griffe.Class, **kwargs: object) -> None:
        """A Griffe event: a class has been read."""
        _move_example(cls)
        fields = _own_fields(cls)
        if (
            "__init__" in cls.members
            or not fields
            or not cls.bases
            or cls.name.startswith("Abstract")
        ):
            return
        kind = griffe.ParameterKind.positional_or_keyword
        parameters = [griffe.Parameter("self", kind=kind)]
        for name, field in fields.items():
            parameters.append(
                griffe.Parameter(
                    name, annotation=field.annotation, kind=kind, default=_default(field.value)
                )
            )
        init = griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=cls)
        cls.set_member("__init__", init)
