"""A first look at a configuration, from the source of what it builds.

Importing torch takes many times as long as anything else that an error message needs. So before that, each class that
a configuration names is outlined: a function with its constructor's parameters that does nothing but the checks which
the constructor begins with. What cannot be had so is left to the constructor itself, which checks all of it again.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rule_extrapolation.config.composing import NO_ARGUMENTS, check_arguments, check_settings, config_error_context
from rule_extrapolation.core import errors
from rule_extrapolation.core.errors import ConfigError

CLASS_NAME = re.compile("[A-Z][A-Za-z]*[a-z][A-Za-z]*")
KNOWN = {**vars(builtins), **vars(typing), **vars(collections.abc), **vars(errors)}

UNKNOWN = object()
"""Stands for an argument that the program gives later: no check can judge it."""


def check_outlines(cfg: DictConfig) -> None:
    """Check everything that can be checked without torch.

    Raises:
        ConfigError: naming the key as one would write it on the command line.
    """
    check_settings(cfg)
    groups = [key for key in cfg if isinstance(cfg[key], DictConfig) and key != "callbacks"]
    groups += [f"callbacks.{name}" for name in cfg.get("callbacks", ())]
    for group in groups:
        node = OmegaConf.select(cfg, group)
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        make = outline(target) if isinstance(target, str) else None
        if make is None:
            continue
        arguments = OmegaConf.to_container(node, resolve=True)
        arguments = {key: value for key, value in arguments.items() if key not in NO_ARGUMENTS}
        parameters = inspect.signature(make).parameters.values()
        required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        given = [name for name in required if name not in arguments]  # by the program, for all that is known here
        check_arguments(make, arguments, group, given)
        with config_error_context(cfg, group):
            try:
                make(**dict.fromkeys(given, UNKNOWN), **arguments)
            except ConfigError:
                raise
            except Exception:
                continue  # a check of what only the program gives


def outline(target: str) -> Callable[..., None] | None:
    """The outline of a class or function that may be imported by that name; None where its source does not tell."""
    try:
        definition, module = constructor(*locate(target))
        return outlined(definition, module)
    except (LookupError, OSError, SyntaxError, NameError, TypeError, AttributeError):
        return None


def locate(target: str) -> tuple[ast.stmt, ast.Module]:
    """A definition and the module it stands in, parsed.

    Raises:
        LookupError: there is none to be found.
    """
    package, *names = target.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise LookupError(target)
    path = Path(spec.origin).parent
    while len(names) > 1 and (path / names[0]).is_dir():
        path /= names.pop(0)
    file = path / (f"{names.pop(0)}.py" if len(names) > 1 else "__init__.py")
    [name] = names if len(names) == 1 else [""]
    module = ast.parse(file.read_text())
    return find(name, module)


def find(name: str, module: ast.Module) -> tuple[ast.stmt, ast.Module]:
    """What a name means in a module: a definition in it, or in the module that it is imported from."""
    for node in module.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return locate(f"{node.module}.{alias.name}")
    raise LookupError(name)


def constructor(definition: ast.stmt, module: ast.Module) -> tuple[ast.FunctionDef, ast.Module]:
    """A function itself, or the __init__ of a class or of the first base that has one."""
    if isinstance(definition, ast.FunctionDef):
        return definition, module
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return node, module
    for base in definition.bases:
        if isinstance(base, ast.Name):
            try:
                return constructor(*find(base.id, module))
            except LookupError:
                continue
    raise LookupError(definition.name)


def outlined(definition: ast.FunctionDef, module: ast.Module) -> Callable[..., None]:
    known = {**KNOWN, **constants(module)}
    arguments = definition.args
    if arguments.args and arguments.args[0].arg == "self":
        arguments.args.pop(0)
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    arguments.defaults = [default if is_literal(default) else ast.Constant(None) for default in arguments.defaults]
    for parameter in parameters:
        unknown = names_in(parameter.annotation) - known.keys() if parameter.annotation else set()
        if all(CLASS_NAME.fullmatch(name) for name in unknown):
            known |= {name: type(name, (), {}) for name in unknown}
        else:
            parameter.annotation = ast.Name("Any", ast.Load())
    checks: list[ast.stmt] = [ast.Pass()]
    for statement in definition.body:
        if is_check(statement):
            checks += [statement] if names_in(statement) <= known.keys() | {p.arg for p in parameters} else []
        elif not is_preamble(statement):
            break  # whatever comes behind may read what this has made
    definition.body, definition.decorator_list, definition.returns = checks, [], None
    namespace = dict(known)
    exec(compile(ast.fix_missing_locations(ast.Module([definition], [])), "<outline>", "exec"), namespace)
    return namespace[definition.name]


def constants(module: ast.Module) -> dict[str, Any]:
    assigned = [node for node in module.body if isinstance(node, ast.Assign) and is_literal(node.value)]
    return {
        node.targets[0].id: ast.literal_eval(node.value) for node in assigned if isinstance(node.targets[0], ast.Name)
    }


def is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def names_in(node: ast.AST) -> set[str]:
    """The names that it reads and does not itself assign."""
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    return {n.id for n in names if isinstance(n.ctx, ast.Load)} - {n.id for n in names if isinstance(n.ctx, ast.Store)}


def is_check(node: ast.stmt) -> bool:
    """``check_...(...)``, or ``if ...: raise``."""
    if isinstance(node, ast.If):
        return isinstance(node.body[-1], ast.Raise) and not node.orelse
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and called(node.value).startswith("check_")


def is_preamble(node: ast.stmt) -> bool:
    """A docstring, or ``super().__init__(...)``."""
    if not isinstance(node, ast.Expr):
        return False
    return isinstance(node.value, ast.Constant) or ast.unparse(node).startswith("super().__init__")


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""
