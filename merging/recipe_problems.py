"""What is wrong with a recipe beyond its form: the method, its parameters, its models and slices. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from merging.methods import METHODS, Method, validate_parameters
from merging.settings import is_plain
from merging.validation import suggest

TOKENIZER_WORDS = ("base", "union")  # what a tokenizer's source can be beside one of the models


def listed(data: Mapping) -> list[tuple[str, list]]:
    """The lists of models in a recipe that may be malformed, and where each is: `models`, or each slice's sources."""
    slices = data.get("slices")
    if isinstance(slices, list):
        found = [(f"slices[{i}].sources", s.get("sources")) for i, s in enumerate(slices) if isinstance(s, Mapping)]
    else:
        found = [("models", data.get("models"))]
    return [
        (where, [entry for entry in entries if isinstance(entry, Mapping)])
        for where, entries in found
        if isinstance(entries, list)
    ]


def method_problems(data: Mapping) -> list[str]:
    """What is wrong with the method, its parameters and its models, in a recipe that may be malformed elsewhere."""
    name = data.get("merge_method")
    if not isinstance(name, str):
        return []
    if name not in METHODS:
        return [f"merge_method: unknown method {name!r}{suggest(name, METHODS)}"]
    method, found = METHODS[name], []
    slices = data.get("slices") if isinstance(data.get("slices"), list) else []
    scopes = [("parameters", data.get("parameters"), False)]
    scopes += [
        (f"slices[{i}].parameters", s.get("parameters"), False) for i, s in enumerate(slices) if isinstance(s, Mapping)
    ]
    scopes += [
        (f"{where}[{i}].parameters", entry.get("parameters"), True)
        for where, entries in listed(data)
        for i, entry in enumerate(entries)
    ]
    whole_model = any(isinstance(p, Mapping) and p.get("trim") == "model" for _, p, _ in scopes)
    for where, parameters, own in scopes:
        if isinstance(parameters, Mapping):
            found += scope_problems(method, parameters, where, own, whole_model)
    return found + input_problems(method, data) + slice_problems(data)


def scope_problems(method: Method, parameters: Mapping, where: str, own: bool, whole_model: bool) -> list[str]:
    """What is wrong with the parameters of a merge, or with a model's `own`; `whole_model`: with `trim: model`."""
    found = validate_parameters(method.name, parameters, where, alone=False)
    for key in parameters:
        if key not in method.parameters:
            continue
        if own and not method.parameters[key].per_model:
            found.append(f"{where}: {key} is for the whole merge; put it in the recipe's own parameters")
        if key == "trim" and not is_plain(parameters[key]):
            found.append(f"{where}: trim is one for the whole model")
        elif whole_model and not is_plain(parameters[key]):
            found.append(f"{where}: with trim: model, {key} is one for the whole model")
    return found


def input_problems(method: Method, data: Mapping) -> list[str]:
    """What is wrong between the method, AIM, the base and the models."""
    base, lists = data.get("base_model"), listed(data)
    found = []
    if not any(entries for _, entries in lists):
        found.append("models: missing; name the models to merge, or slices of them")
    if data.get("models") and data.get("slices"):
        found.append("models, slices: both are there; keep one")
    if method.needs_base and not base:
        return [*found, f"base_model: {method.name} works on deltas from a base; name it"]
    if data.get("aim") is not None and not base:
        return [*found, "base_model: AIM relaxes towards a base; name it"]
    if data.get("acm") is not None and not base:
        return [*found, "base_model: ACM scales the change from a base; name it"]
    on_deltas = method.needs_base or (method.takes_base and base)
    for where, entries in lists:
        named = [entry.get("model") for entry in entries]
        if named:
            found += count_problems(method, len([n for n in named if not (on_deltas and n == base)]), where)
        if where != "models" and on_deltas and named.count(base) != 1:
            found.append(f"{where}: list the base {base} once, with the layers the others are compared with")
    return found


def count_problems(method: Method, count: int, where: str) -> list[str]:
    """Too few or too many models for a method."""
    least, most = method.experts
    if count >= least and (most is None or count <= most):
        return []
    wanted = f"{least}" if least == most else f"at least {least}"
    beside = " beside the base" if method.needs_base else ""
    return [f"{where}: {method.name} merges {wanted}{beside}, found {count}"]


def slice_problems(data: Mapping) -> list[str]:
    """Slices whose sources have different numbers of layers, and what does not go with slices."""
    found = []
    for key in ("aim", "acm"):
        if data.get("slices") and data.get(key) is not None:
            found.append(f"{key}: the statistics are of the base's own layers; it cannot be used with slices")
    if data.get("slices") and (data.get("parameters") or {}).get("trim") == "model":
        found.append("parameters: trim: model cannot be used with slices, whose merges are their own")
    for where, entries in listed(data) if data.get("slices") else []:
        ranges = [entry.get("layer_range") for entry in entries]
        good = all(isinstance(r, list | tuple) and len(r) == 2 and all(type(n) is int for n in r) for r in ranges)
        if good and any(not 0 <= first < end for first, end in ranges):
            found.append(f"{where}: a layer_range is [first, end] with 0 <= first < end, found {ranges}")
        elif good and len({end - first for first, end in ranges}) > 1:
            found.append(f"{where}: the sources have different numbers of layers: {ranges}")
    return found


def tokenizer_problems(data: Mapping) -> list[str]:
    """What is wrong with the choice of a tokenizer, in a recipe that may be malformed elsewhere."""
    longer = data.get("tokenizer")
    if data.get("tokenizer_source") is not None and longer is not None:
        return ["tokenizer_source, tokenizer: both are there; keep one"]
    where, source = "tokenizer_source", data.get("tokenizer_source")
    found = []
    if isinstance(longer, Mapping):
        where, source = "tokenizer.source", longer.get("source")
        if longer.get("tokens"):
            found.append("tokenizer.tokens: rows cannot be chosen by token; a model without a token has its mean row")
    models = [data.get("base_model")] + [entry.get("model") for _, entries in listed(data) for entry in entries]
    valid = [*TOKENIZER_WORDS, *(name for name in models if isinstance(name, str))]
    if isinstance(source, str) and source not in valid:
        found.append(f"{where}: {source!r} is no model of this recipe{suggest(source, valid)}")
    return found


def acm_problems(data: Mapping) -> list[str]:
    """What is wrong with ACM's settings, in a recipe that may be malformed elsewhere."""
    acm = data.get("acm")
    if not isinstance(acm, Mapping):
        return []
    found, files = [], acm.get("statistics")
    if acm.get("t") == 0:
        found.append("acm.t: 0 makes lambda 0.5 everywhere; use 0.7, as published, or another number above 0")
    models = [entry.get("model") for _, entries in listed(data) for entry in entries]
    experts = [name for name in models if isinstance(name, str) and name != data.get("base_model")]
    by_expert = data.get("merge_method") == "task_arithmetic"
    if by_expert and isinstance(files, str) and len(experts) > 1:
        found.append(f"acm.statistics: one file for {len(experts)} experts; name one by expert, as EXPERT: FILE")
    if isinstance(files, Mapping) and by_expert:
        found += [
            f"acm.statistics: {name!r} is no expert of this recipe{suggest(name, experts)}"
            for name in files
            if name not in experts
        ]
    elif isinstance(files, Mapping):
        found.append(f"acm.statistics: {data.get('merge_method')} takes one file, of the base and the plain merge")
    return found
