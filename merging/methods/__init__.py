"""The registry of merging methods, and the check of a user's parameters. Imports no torch."""

from collections.abc import Mapping

from merging.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from merging.methods.dare import DARE_LINEAR, DARE_TIES
from merging.methods.definition import Group, Method, Parameter, merge_whole
from merging.methods.della import DELLA, DELLA_LINEAR
from merging.methods.linear import LINEAR
from merging.methods.model_stock import MODEL_STOCK
from merging.methods.pairs import ARCEE_FUSION, NEARSWAP, PASSTHROUGH
from merging.methods.ram import RAM
from merging.methods.sce import SCE
from merging.methods.slerp import NUSLERP, SLERP
from merging.methods.spherical_mean import KARCHER, MULTISLERP
from merging.methods.task_arithmetic import TASK_ARITHMETIC
from merging.methods.ties import TIES
from merging.methods.widen import WIDEN
from merging.settings import is_plain
from merging.settings import problems as setting_problems
from merging.validation import suggest

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        LINEAR,
        TASK_ARITHMETIC,
        TIES,
        DARE_LINEAR,
        DARE_TIES,
        WIDEN,
        SLERP,
        NUSLERP,
        MULTISLERP,
        KARCHER,
        MODEL_STOCK,
        DELLA,
        DELLA_LINEAR,
        BREADCRUMBS,
        BREADCRUMBS_TIES,
        SCE,
        NEARSWAP,
        ARCEE_FUSION,
        RAM,
        PASSTHROUGH,
    )
}


def validate_parameters(method: str, parameters: Mapping, where: str, alone: bool = True) -> list[str]:
    """What is wrong with the parameters a user gave a method, one line each, `where` before it; [] when all is good.

    `alone`: nothing else is given, so that what is wrong between them shows, unless they vary over the model.
    """
    if method not in METHODS:
        return [f"{where}: unknown merge_method {method!r}{suggest(method, METHODS)}"]
    declared = METHODS[method].parameters
    problems = []
    for name, value in parameters.items():
        if name not in declared:
            problems.append(f"{where}: unknown parameter {name!r} of {method}{suggest(name, declared)}")
        else:
            problems += [f"{where}: {problem}" for problem in setting_problems(declared[name], value)]
    if alone and not problems and all(map(is_plain, parameters.values())):
        every = {p.name: p.read(parameters.get(p.name, p.default)) for p in declared.values()}
        if problem := METHODS[method].check(every, [every] * 2):
            problems.append(f"{where}: {problem}")
    return problems


__all__ = ["METHODS", "Group", "Method", "Parameter", "merge_whole", "validate_parameters"]
